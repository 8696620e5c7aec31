"""Arguments that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def _use(folder: Path | None) -> Path | None:
    from pfl_platform.cli.data import use

    use(folder)
    return folder


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the results as a Markdown table, for pages.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", callback=_use, help="The folder that holds data sets; default: the variable PFL_DATA."),
]
"""Taken for the whole process before the command begins."""
Threads = Annotated[int | None, typer.Option("--threads", help="Threads for computing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the results only.")]
Profiled = Annotated[
    bool, typer.Option("--profile", help="Tell where the time of rounds goes at each rank, and trace the first steps.")
]
Gpus = Annotated[int | None, typer.Option("--gpus", help="Processes to start, one for each GPU; on every machine.")]
Ranks = Annotated[
    int | None, typer.Option("--ranks", help="Processes to start, on whatever device there is; on every machine.")
]
Hostfile = Annotated[Path | None, typer.Option("--hostfile", help="Machines of a launch: `name slots=8`, one a line.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="inprocess (default), or deepspeed: clients at many processes.")
]
Zero = Annotated[int | None, typer.Option("--zero", help="ZeRO stage of the engine deepspeed.")]
Shards = Annotated[int | None, typer.Option("--shards", help="Ranks that serve one client together.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything that is random.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any setting: key=value. May be repeated.")]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where a run is carried out."""

    threads: Threads = None
    engine: EngineName = None
    gpus: Gpus = None
    ranks: Ranks = None
    zero: Zero = None
    shards: Shards = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was said of them, as settings of a run."""
        given = {
            "engine.threads": self.threads,
            "engine.name": self.engine,
            "engine.zero": self.zero,
            "engine.shards": self.shards,
            "engine.device": "cuda" if self.gpus is not None else None,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which run, and with what: options that `run` and `plan` have in common; see `asking`."""

    plugin: Annotated[str | None, typer.Option("--plugin", "-p", help="The method: a name of `list plugins`.")] = None
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="A name of `list benchmarks`, or a folder.")
    ] = None
    recipe: Annotated[str | None, typer.Option("--recipe", help="A name of `list recipes`, or a YAML file.")] = None
    row: Annotated[
        list[str] | None,
        typer.Option("--row", help="A row of a recipe that is a table; default: all. May be repeated."),
    ] = None
    adapter: Annotated[str | None, typer.Option("--adapter", help="Another adapter than the method's own.")] = None
    backbone: Annotated[str | None, typer.Option("--backbone", help="One backbone for all clients.")] = None
    rounds: Annotated[int | None, typer.Option("--rounds", help="Number of rounds.")] = None
    local_steps: Annotated[int | None, typer.Option("--local-steps", help="Local steps of a client per round.")] = None
    seed: Seed = None
    public: Annotated[
        str | None, typer.Option("--public", help="The public set: a name, another benchmark, a folder, or a file.")
    ] = None
    public_size: Annotated[int | None, typer.Option("--public-size", help="Samples of the public set.")] = None
    settings: Settings = None
    data: Data = None
    batch_clients: Annotated[
        str | None,
        typer.Option(
            "--batch-clients", help="Clients of a backbone that train side by side: off (default), auto, or K."
        ),
    ] = None
