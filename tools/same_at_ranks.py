"""Whether real input ends in the same bits at every number of ranks.

    python tools/same_at_ranks.py OUT [--data FOLDER] [--ranks 2,4] [--stages 0,2] [--rounds N] [--steps N] [--items N]

FedMosaic, Potara, FedDAT and KnOTS-TIES on drake-synth and, with --data, on the slices of NLVR and CIFAR-10 in the form
of DRAKE, four clients with four backbones. Each number of ranks is one launch, which carries out all runs; then every
client's state, and what the server holds, is compared with that of one process. Given again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pfl_platform.config import RunConfig
from pfl_platform.engines.carrier import Carrier
from pfl_platform.engines.ranks.launcher import free_port
from pfl_platform.engines.ranks.place import here
from pfl_platform.federation import session
from pfl_platform.federation.together import Alone
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.testing.ranks import difference

METHODS = {
    "FedMosaic": ("fedmosaic", ["adapter.blocks=2"]),
    "Potara": ("potara", []),
    "FedDAT": ("feddat", []),
    "KnOTS-TIES": ("guided", ["aggregator=ties", "aggregator.space=knots"]),
}
SCENARIO = Path(__file__).parent.parent / "benchmarks/pfl_benchmarks/folder/examples/nlvr_cifar10.json"


def runs(asked: argparse.Namespace, engine: str, stage: int) -> Iterator[tuple[str, RunConfig]]:
    """Name -> configuration, of every method on every benchmark."""
    resolver = Resolver(PluginManager())
    places = {"drake-synth": ("drake-synth", ["benchmark.num_clients=5"])}
    if asked.data is not None:
        places["drake_hflb"] = (str(asked.data), [f"benchmark.scenario={SCENARIO}"])
    for place, (benchmark, own) in places.items():
        for name, (method, sets) in METHODS.items():
            words = [
                f"engine.name={engine}", f"engine.zero={stage}", "engine.threads=1", f"rounds={asked.rounds}",
                f"local_steps={asked.steps}", f"evaluation.every={asked.rounds}", f"evaluation.items={asked.items}",
                "evaluation.baseline=false", "evaluation.others=false", "evaluation.max_new_tokens=2", "adapter.r=8",
                "training.batch_size=2", "public.name=drake-synth", "public.size=8",
            ]  # fmt: skip
            yield (
                f"{name} on {place}",
                resolver.resolve(Request(method, benchmark=benchmark, sets=[*words, *own, *sets])),
            )


def carry_out(asked: argparse.Namespace, folder: Path, stages: list[int]) -> None:
    """In one process, or as a rank of a launch."""
    from pfl_platform.engines.ranks.start import joined

    torch.set_num_threads(1)
    place = here()
    if place is None:
        for name, config in runs(asked, "inprocess", 0):
            _do(config, folder / name, None)
        return
    todo = [(f"{name}, stage {stage}", config) for stage in stages for name, config in runs(asked, "deepspeed", stage)]
    with joined(place, todo[0][1].engine) as launch:
        for name, config in todo:
            _do(config, folder / name, launch)


def _do(config: RunConfig, out: Path, carrier: Carrier | None) -> None:
    together = carrier.together if carrier is not None else Alone()
    stands = together.once(lambda: [(out / "run.json").is_file(), (out / "results.json").is_file()])
    if not stands[0]:
        session.run(config, out, quiet=True, carrier=carrier)
    elif not stands[1]:
        session.resume(out, quiet=True, carrier=carrier)


def server(out: Path) -> dict[str, object]:
    """What a server ends with, by address: the hash of the content."""
    record = json.loads(max((out / "rounds").glob("*.json")).read_text(encoding="utf-8"))
    found: dict[str, object] = record["server"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--stages", default="0,2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--items", type=int, default=2)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    stages = [int(stage) for stage in asked.stages.split(",")]
    if asked.part:
        carry_out(asked, asked.out / asked.part, stages)
        return
    words = [__file__, *sys.argv[1:], "--part"]
    numbers = [int(number) for number in asked.ranks.split(",")]
    for number in (1, *numbers):
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(number), "--master_port", str(free_port({}))]
        begun = time.perf_counter()
        subprocess.run([sys.executable, *(torchrun if number > 1 else []), *words, str(number)], check=True)
        print(f"{number} rank(s): {time.perf_counter() - begun:.0f} s", flush=True)
    for name, _ in runs(asked, "inprocess", 0):
        alone = asked.out / "1" / name
        for number in numbers:
            for stage in stages:
                other = asked.out / str(number) / f"{name}, stage {stage}"
                off, same = difference(alone, other), server(alone) == server(other)
                print(f"{name}, {number} ranks, stage {stage}: clients differ by {off:.1e}, server {same=}", flush=True)


if __name__ == "__main__":
    main()
