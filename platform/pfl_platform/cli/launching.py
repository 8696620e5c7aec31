"""`run` and `resume` with an engine that works in several processes: starts them, or is one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pfl_platform.config import EngineOptions, RunConfig
from pfl_platform.engines import compiling
from pfl_platform.engines.ranks import launcher
from pfl_platform.engines.ranks.place import check_folder, check_stage, here
from pfl_platform.errors import RunStopped, UserError

if TYPE_CHECKING:
    from pfl_platform.engines.carrier import Carrier


@dataclass(frozen=True)
class Ask:
    """What the user said of processes. words: the command as it was typed, which every rank carries out."""

    words: Sequence[str]
    ranks: int | None = None
    gpus: int | None = None
    hostfile: Path | None = None

    @property
    def given(self) -> str:
        """The first of the options that was used, or nothing."""
        named = {"--ranks": self.ranks, "--gpus": self.gpus, "--hostfile": self.hostfile}
        return next((name for name, value in named.items() if value is not None), "")


def carry_out(configs: Sequence[RunConfig], ask: Ask, folder: Path, work: Callable[[Carrier | None], None]) -> None:
    """Does `work` in this process, or in the ranks of a launch. folder: where the run is or will be."""
    engines = {config.engine for config in configs}
    if here() is None:
        for engine in engines:
            compiling.check_here(engine)
            check_folder(engine.offload, engine.offload_folder)
    names = {engine.name for engine in engines}
    if names == {"inprocess"}:
        _refuse_launch(ask)
        work(None)
        return
    if len(engines) > 1:
        raise UserError("Runs that are started together need the same engine with the same options.")
    (engine,) = engines
    if here() is None:
        _launch(engine, ask, folder)
    else:
        _take_part(engine, work)


def _refuse_launch(ask: Ask) -> None:
    if ask.given:
        raise UserError(f"{ask.given} is for the engine 'deepspeed'; add --engine deepspeed.")


def check_engine(engine: EngineOptions) -> None:
    """Raises `UserError` for what would silently be without effect in one process."""
    if engine.name == "inprocess" and (engine.zero or engine.shards > 1 or engine.offload != "none"):
        what = "Sharing a client (engine.shards)" if engine.shards > 1 else "Offload (engine.offload)"
        what = "ZeRO (engine.zero)" if engine.zero else what
        raise UserError(f"{what} is for the engine 'deepspeed'; add --engine deepspeed, or leave it out.")
    compiling.check(engine)


def check_plan(engine: EngineOptions, ranks: int | None, gpus: int | None) -> int:
    """How many processes a launch would have that is planned, on whatever machine; one without a launch. Raises
    `UserError` for what no machine could start."""
    ask = Ask((), ranks, gpus)
    if engine.name == "inprocess":
        _refuse_launch(ask)
        check_engine(engine)
        return 1
    number = _asked(ask) or engine.shards
    launcher.check_shape(launcher.Machines(number), engine.shards)
    check_stage(engine.zero, engine.shards, engine.offload)
    compiling.check(engine)
    return number


def _launch(engine: EngineOptions, ask: Ask, folder: Path) -> None:
    cpu = engine.device == "cpu" or (engine.device == "auto" and ask.gpus is None and not _gpus())
    machines = launcher.Machines(_ranks(ask, cpu), ask.hostfile)
    launcher.check_shape(machines, engine.shards)
    check_stage(engine.zero, engine.shards, engine.offload)
    launcher.check_hosts(machines)
    code = launcher.launch(machines, [*ask.words, *_settled(ask, folder)], cpu=cpu)
    if code is None:
        kept = "finished tasks and rounds are kept; go on with: pfl-platform resume"
        then = f"{kept} {folder}" if folder.exists() else "nothing was kept"
        raise RunStopped(f"Rank 0 has ended without a word: it was killed, or ran out of memory; {then}")
    if code:
        raise typer.Exit(code)


def _settled(ask: Ask, folder: Path) -> list[str]:
    """Options that every rank must have alike, and that this process has chosen."""
    taken = any(word in ("--out", "-o", "resume") or word.startswith("--out=") for word in ask.words)
    return [] if taken else ["--out", str(folder)]


def _asked(ask: Ask) -> int | None:
    """How many processes were asked for."""
    if ask.ranks is not None and ask.gpus is not None:
        raise UserError("Give --gpus, or --ranks for processes on whatever device there is, not both.")
    number = ask.gpus if ask.gpus is not None else ask.ranks
    if number is not None and number < 1:
        raise UserError("A launch has at least one rank.")
    return number


def _ranks(ask: Ask, cpu: bool) -> int:
    number = _asked(ask)
    there = 0 if cpu else _gpus()
    if ask.gpus is not None and ask.hostfile is None and ask.gpus > there:
        has = f"{there} of them" if there else "none; --ranks starts processes without"
        raise UserError(f"{ask.gpus} GPUs are asked for, and this machine has {has}.")
    if number is None and not there:
        raise UserError("Say how many ranks are to be started, by --ranks or --gpus.")
    if number is not None and not cpu and ask.hostfile is None and number > there:
        raise UserError(f"{number} ranks are asked for, one for each GPU, and this machine has {there}.")
    return number or there


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _take_part(engine: EngineOptions, work: Callable[[Carrier | None], None]) -> None:
    from pfl_platform.engines.ranks.link import Severed
    from pfl_platform.engines.ranks.start import joined

    place = here()
    assert place is not None
    try:
        with joined(place, engine) as launch:
            work(launch)
    except Severed:
        raise typer.Exit(1) from None  # rank 0 says why
    except UserError as error:
        if place.rank == 0:
            launcher.leave_note(error.exit_code)
        raise
    if place.rank == 0:
        launcher.leave_note(0)
