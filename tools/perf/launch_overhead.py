"""What a launch of two ranks takes over one process, and what clients that were swapped leave in a rank's memory.

    python tools/perf/launch_overhead.py [--pairs N] [--swaps N] [--zero STAGE]

Whole commands: one round of FedIT, one local step of two clients of drake-synth, on the CPU; in one process, then by
`--engine deepspeed --ranks 2`. One of each comes first and is not counted. Both are timed by the clock and by the
processor (of all processes that a command has started). The bound is for the clock, on a machine that has nothing else
to do. `--pairs 0` leaves this out.

Swaps: at each of two ranks clients take their turns one after another in one engine, and its resident memory is read
before and after. The first turns, in which arenas and tables fill up, are not counted.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pfl_platform.engines.ranks.launcher import free_port
from pfl_platform.engines.ranks.place import here
from pfl_platform.federation.rounds import client_task, drive, prepare
from pfl_platform.federation.setup import build
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing.bench import Bench

SECONDS, MEGABYTES, FIRST = 25.0, 5.0, 15
RUN = ["run", "--plugin", "fedit", "--benchmark", "drake-synth", "--quiet"]
SETS = [
    "rounds=1", "local_steps=1", "benchmark.num_clients=2", "engine.threads=1", "training.batch_size=1",
    "evaluation.items=1", "evaluation.others=false", "evaluation.baseline=false", "evaluation.max_new_tokens=1",
]  # fmt: skip


def timed(folder: Path, *engine: str) -> tuple[float, float]:
    """Seconds of a command, by the clock and by the processor."""
    words = [sys.executable, "-m", "pfl_platform", *RUN, *(word for text in SETS for word in ("--set", text)), *engine]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*words, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident() -> float:
    """Megabytes of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def swap(count: int, stage: int) -> None:
    """At each rank of a launch: says by how many megabytes so many turns of clients make it grow."""
    from pfl_platform.engines.ranks import zero
    from pfl_platform.engines.ranks.start import joined

    place = here()
    assert place is not None
    torch.set_num_threads(1)
    bench = Bench("fedit", Path(), ("tiny-llama-s", "tiny-llama-s"), ["local_steps=1"])
    config = bench.config()
    with joined(place, config.engine) as launch:
        setup, store = build(config, bench.manager, bench.benchmark()), MemoryStore()
        fed, worker = setup.federation(store), setup.worker(store, zero.ZeroDriver(stage, launch.grid))
        progress = drive(prepare(fed, setup.parts), _Idle())
        turns = [client_task(fed, setup.parts, progress, client, 0) for client in fed.clients]
        tasks = [replace(task, score=(), recipe=None) for task in turns]
        found = []
        for number in range(FIRST + count + 1):
            if number in (FIRST, FIRST + count):
                found.append(resident())
            worker.execute(tasks[number % len(tasks)])
        said = launch.together.gathered({"grown": found[1] - found[0]})
        for rank, entry in enumerate(said):
            grown = entry["grown"]
            print(
                f"rank {rank}: {count} swaps at stage {stage}: {grown:+.2f} MB (bound {MEGABYTES:.0f} MB)", flush=True
            )


class _Idle:
    """Stands for an engine where nothing is to be done."""

    def run(self, tasks: object) -> dict[str, object]:
        if tasks:
            raise AssertionError("there is nothing to prepare")
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--zero", type=int, default=2)
    asked = parser.parse_args()
    if here() is not None:
        swap(asked.swaps, asked.zero)
        return
    many = ("--engine", "deepspeed", "--ranks", "2", "--zero", str(asked.zero))
    clock, processor = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.pairs + 1 if asked.pairs else 0):
            alone = timed(Path(folder, f"{number}-alone"))
            ranks = timed(Path(folder, f"{number}-ranks"), *many)
            if number:
                clock.append(ranks[0] - alone[0])
                processor.append(ranks[1] - alone[1])
                print(f"alone {alone[0]:.1f} s ({alone[1]:.1f}), ranks {ranks[0]:.1f} s ({ranks[1]:.1f})", flush=True)
    if clock:
        print(
            f"two ranks over one process: median {statistics.median(clock):+.1f} s by the clock ({min(clock):+.1f} to "
            f"{max(clock):+.1f}; bound {SECONDS:.0f} s), {statistics.median(processor):+.1f} s of the processor"
        )
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port({}))]
    subprocess.run([sys.executable, *words, __file__, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
