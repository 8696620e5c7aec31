"""`python -m pfl_platform.testing.ranks METHOD...`: the contract that a method ends the same wherever clients train.

Started by itself, it starts ranks of its own; in each rank of a launch it runs every method on the kit's federation, at
all ranks and, at rank 0, in one process, and compares what the clients end with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.config import EngineOptions
from pfl_platform.engines.ranks import launcher
from pfl_platform.engines.ranks.place import Place, here
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.plugins import available
from pfl_platform.testing.bench import Bench, two_backbones
from pfl_platform.testing.checks import states

CLIENTS = 6


def difference(first: Path, second: Path, keys: Keys | None = None) -> float:
    """Of two finished runs: the largest relative difference between a client's final states, of all their tensors
    taken as one vector each; 0.0 when they are equal bit for bit, infinity when they do not hold the same. keys: of
    these tensors alone."""
    one, other = (
        {name: state if keys is None else keys.of(state) for name, state in states(out).items()}
        for out in (first, second)
    )
    if {name: state.keys() for name, state in one.items()} != {name: state.keys() for name, state in other.items()}:
        return float("inf")
    found = 0.0
    for name, state in one.items():
        apart = length = 0.0
        for key, value in state.items():
            there = other[name][key]
            if value.shape != there.shape or value.dtype != there.dtype:
                return float("inf")
            if not torch.equal(value, there):
                apart += float((value.double() - there.double()).square().sum())
            length += float(value.double().square().sum())
        off = (apart / max(length, 1e-24)) ** 0.5
        found = max(found, off if off == off else float("inf"))
    return found


def compare(methods: Sequence[str], backbones: tuple[str, str], settings: Sequence[str], place: Place) -> bool:
    """At each rank of a launch; rank 0 says one line per method. True when all are as equal as promised: bit for bit
    where a client lives at one rank, else to a relative difference of 1e-5."""
    from pfl_platform.engines.ranks.start import Refused, joined

    good = True
    first = Bench(methods[0], Path(), backbones, ["engine.name=deepspeed", *settings]).config().engine
    exact = first.shards == 1
    with tempfile.TemporaryDirectory() as folder, joined(place, first) as launch:
        for method in methods:
            bench = Bench(method, Path(folder, method), backbones, ["engine.name=deepspeed", *settings], rounds=3)
            try:
                session.run(
                    bench.config(),
                    bench.folder / "ranks",
                    quiet=True,
                    plugins=bench.manager,
                    benchmark=bench.benchmark(CLIENTS),
                    carrier=launch,
                )
            except Refused as error:
                if launch.together.leads:
                    print(f"refused {method}: {error}", flush=True)
                continue
            if launch.together.leads:
                off = difference(_alone(bench, first), bench.folder / "ranks")
                well = off == 0.0 if exact else off <= 1e-5
                good = good and well
                word = "ok     " if well else "FAILED "
                how = "the same bits" if off == 0.0 else f"a relative difference of {off:.1e}"
                print(f"{word}{method}: {place.size} ranks and one process end with {how}", flush=True)
    return good


def _alone(bench: Bench, engine: EngineOptions) -> Path:
    """The same run in one process."""
    alone = engine.model_copy(update={"name": "inprocess", "zero": 0, "shards": 1})
    config = bench.config().model_copy(update={"engine": alone})
    out = bench.folder / "alone"
    session.run(config, out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark(CLIENTS))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pfl_platform.testing.ranks", description="Compares engines.")
    parser.add_argument("methods", nargs="*", help="methods as `pfl-platform list plugins` shows them; default: all")
    parser.add_argument("--ranks", type=int, default=2, help="processes to start")
    parser.add_argument("--backbones", help="two backbones, A,B; default: the two smallest text backbones installed")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a setting, as for `run`")
    options = parser.parse_args()
    place = here()
    try:
        if place is None:
            words = [*options.methods, "--ranks", str(options.ranks), *(f"--set={text}" for text in options.set)]
            words += ["--backbones", options.backbones] if options.backbones else []
            machines = launcher.Machines(options.ranks)
            code = launcher.launch(machines, words, cpu=not torch.cuda.is_available(), module=str(__spec__.name))
            return 1 if code is None else code
        names = tuple(options.backbones.split(",")) if options.backbones else two_backbones()
        good = compare(options.methods or sorted(available("method")), (names[0], names[1]), options.set, place)
        if place.rank == 0:
            launcher.leave_note(0 if good else 1)
        return 0
    except UserError as error:
        if place is None or place.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        launcher.leave_note(error.exit_code)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
