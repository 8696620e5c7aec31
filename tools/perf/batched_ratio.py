"""How much faster clients train side by side than one after another.

    python tools/perf/batched_ratio.py [--backbone NAME] [--adapter NAME] [--clients K] [--batch N ...] [--threads N]
        [--steps N] [--pairs N] [--metered]

The training of K clients of drake-synth on one backbone, by one worker, with everything that a local step has: batches
from streams, clipping, AdamW. The dry row by which FLOPs are counted, one for each task and the same in both arms, is
left out unless `--metered`. Both arms run in turn with the same number of threads, and train
the same tasks from the same states; the medians of the pairwise ratios one after another / side by side are printed, of
wall time and of processor time, with the smallest and largest, and by how much the adapters differ in the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.rounds import client_task, drive, prepare
from pfl_platform.federation.setup import build
from pfl_platform.federation.tasks import Outcome
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.memory import MemoryStore

BOUNDS = {1: 2.5, 4: 1.3}


class Still(FlopMeter):
    """Counts nothing."""

    def known(self, kind: tuple[str, ...]) -> bool:
        return True

    def book(self, kind: tuple[str, ...], tokens: int) -> None:
        pass


def arms(
    asked: argparse.Namespace, batch: int
) -> tuple[Callable[[], list[Outcome]], Callable[[], list[Outcome]], MemoryStore]:
    """One after another, side by side, and where the states are."""
    manager = PluginManager()
    sets = [
        f"benchmark.num_clients={asked.clients}", f"benchmark.backbones={asked.backbone}", f"adapter.r={asked.rank}",
        f"local_steps={asked.steps}", f"training.batch_size={batch}", "rounds=1", "evaluation.every=1000000",
        f"engine.batch_clients={asked.clients}", f"engine.threads={asked.threads}", "training.lr=1e-3",
    ]  # fmt: skip
    options = {"adapter.name": asked.adapter} if asked.adapter else {}
    setup = build(
        Resolver(manager).resolve(Request(asked.method, benchmark="drake-synth", options=options, sets=sets)), manager
    )
    store = MemoryStore()
    fed, worker = setup.federation(store), setup.worker(store)
    worker.place.meter = FlopMeter if asked.metered else Still
    progress = drive(prepare(fed, setup.parts), InProcessEngine(worker))
    tasks = [
        replace(client_task(fed, setup.parts, progress, client, 0), score=(), recipe=None) for client in fed.clients
    ]
    return (
        lambda: [worker.execute(task) for task in tasks],
        lambda: list(worker.together(tasks, lambda _task: None)),
        store,
    )


def timed(arm: Callable[[], list[Outcome]]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    arm()
    return time.perf_counter() - wall, time.process_time() - cpu


def apart(one: Sequence[Outcome], other: Sequence[Outcome], store: MemoryStore) -> float:
    """The largest relative difference of a client's adapter."""
    worst = 0.0
    for mine, theirs in zip(one, other, strict=True):
        states = [store.get(outcome.new_state) for outcome in (mine, theirs)]
        names = [name for name in states[0] if not name.startswith(("moments/", "memory/"))]
        a, b = (torch.cat([state[name].double().flatten() for name in names]) for state in states)
        worst = max(worst, float((a - b).norm() / a.norm()))
    return worst


def line(name: str, ratios: Sequence[float]) -> str:
    return f"{name} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="sft")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--metered", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{asked.method} {asked.adapter}, {asked.backbone}, {asked.clients} clients, {asked.threads} threads")
    for batch in asked.batch:
        alone, beside, store = arms(asked, batch)
        differ = apart(alone(), beside(), store)
        found = [(timed(alone), timed(beside)) for _ in range(asked.pairs)]
        wall = [one[0] / other[0] for one, other in found]
        cpu = [one[1] / other[1] for one, other in found]
        bound = f", at least {BOUNDS[batch]}" if batch in BOUNDS else ""
        print(f"batch {batch}: {line('wall', wall)}, {line('processor', cpu)}{bound}; adapters differ by {differ:.1e}")


if __name__ == "__main__":
    main()
