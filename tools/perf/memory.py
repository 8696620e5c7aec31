"""Peak memory of a run with 5 and with 50 clients of one architecture, each in processes of its own.

    python tools/perf/memory.py [--backbone NAME] [--clients 5,50] [--method NAME] [--repeats N] [--store disk,memory]

With the store on disk the states lie in the run folder, so the peak should not grow with the number of clients. With
the store in memory it should grow by what the clients' adapters and private state take, and by what the server keeps.

Resident memory has noise of its own: arenas, chunks that the allocator keeps for later, and when the collector comes.
So there is one arena, larger blocks go back to the system at once, and every figure is a mean over repeats with its
sample deviation. The bytes of the tensors that are alive after the last round have no noise; they are counted in a
process of its own, as counting takes memory, too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import gc, json, sys, warnings
from pathlib import Path

import torch

from pfl_platform.federation import session
from pfl_platform.federation.rounds import drive, one_round, prepare
from pfl_platform.federation.setup import build
from pfl_platform.ledger.memory import peak_memory
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.run_folder import RunFolder

out, clients, backbone, method, kind, counting = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:7]
torch.set_num_threads(1)
manager = PluginManager()
sets = [f"benchmark.options.num_clients={clients}", f"benchmark.options.backbones={backbone}",
        "rounds=2", "local_steps=3",
        "evaluation.others=false", "evaluation.items=2", "evaluation.every=2", "engine.threads=1", "adapter.r=16",
        "benchmark.options.train_size=8"]
config = Resolver(manager).resolve(Request(method=method, sets=sets))


def weight(tensors):
    return sum(value.numel() * value.element_size() for value in tensors.values())


def alive():
    if not counting:
        return 0
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storages = [t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Forgetful:
    # Tasks one after another; what nobody will read again goes at once.
    def __init__(self, worker, store, held):
        self.worker, self.store, self.held = worker, store, held

    def run(self, tasks):
        waiting, outcomes = list(tasks), {}
        while waiting:
            task = waiting.pop(0)
            outcomes[task.actor] = self.worker.execute(task)
            needed = set(self.held(outcomes))
            for other in waiting:
                needed |= {other.state, other.frozen, other.base, other.inbox}
            for outcome in outcomes.values():
                needed |= {outcome.state, outcome.sent}
            self.store.keep(address for address in needed if address)
        return outcomes


def in_memory():
    setup, store = build(config, manager), MemoryStore()
    fed, progress = setup.federation(store), None

    def held(outcomes):
        states = {} if progress is None else progress.states
        server = () if progress is None else progress.server.tensors.values()
        return {*fed.frozen.values(), *server, *(a for client, a in states.items() if client not in outcomes)}

    engine = Forgetful(setup.worker(store), store, held)
    progress = drive(prepare(fed, setup.parts), engine)
    for index in range(config.rounds):
        progress = drive(one_round(fed, setup.parts, progress, index), engine).progress
    return store, progress.states, progress.server.tensors, alive() + store.held, peak_memory()


def on_disk():
    counted, commit = [], RunFolder.commit_round

    def commit_and_count(folder, index, record):
        commit(folder, index, record)
        counted[:] = [alive()]

    RunFolder.commit_round = commit_and_count
    session.run(config, out, quiet=True, plugins=manager)
    folder = RunFolder.open(out)
    last = folder.last_round()
    return folder.store, last["states"], last["server"]["tensors"], counted[0], peak_memory()


store, states, server, values, peak = in_memory() if kind == "memory" else on_disk()
one = next(iter(states))
state = weight(store.get(states[one]))
update = weight(store.get(server[one])) if one in server else 0
print(json.dumps({"peak": peak, "values": values, "state": state, "update": update}))
"""


QUIET = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of the C library under which resident memory follows what is in use."""


def measure(clients: int, backbone: str, method: str, kind: str, *, counting: bool = False) -> dict[str, int]:
    """Of one process, in bytes: the resident peak; when `counting`, the values of tensors that are alive after the last
    round, the store's included when it is in memory; one client's adapters and private state, and what the server keeps
    of it."""
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, str(Path(folder) / "run"), str(clients), backbone, method, kind]
        command.append("counting" if counting else "")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def mib(count: float) -> str:
    return f"{count / 2**20:.1f}"


def spread(values: list[int]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def report(few: int, many: int, runs: dict[int, list[dict[str, int]]], values: dict[int, int], kind: str) -> None:
    """Prints what grew, beside what it may be compared with."""
    peaks = {count: [run["peak"] for run in found] for count, found in runs.items()}
    for count, found in peaks.items():
        print(
            f"  {count} clients: peak {mib(statistics.mean(found))} ± {mib(spread(found))} MiB (n={len(found)}); "
            f"values of tensors {values[count] / 2**20:.2f} MiB"
        )
    grown = statistics.mean(peaks[many]) - statistics.mean(peaks[few])
    noise = math.hypot(*(spread(found) / math.sqrt(len(found)) for found in peaks.values()))
    one = runs[many][0]
    states, kept = (many - few) * one["state"], (many - few) * one["update"]
    more = values[many] - values[few]
    print(f"  values of tensors grew by {more / 2**20:.2f} MiB, {more / (states + kept):.2f} of (state + server's)")
    print(f"  growth {mib(grown)} ± {mib(noise)} MiB (standard error), {grown / (many - few) / 1024:.0f} KiB a client")
    print(
        f"  the clients added have adapters and private state of {mib(states)} MiB; {mib(kept)} of it the server keeps"
    )
    bound = "0" if kind == "disk" else "1.2"
    print(f"  growth / state {grown / states:.2f}; / (state + server's) {grown / (states + kept):.2f}; bound {bound}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--clients", default="5,50")
    parser.add_argument("--method", default="fedmosaic")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", default="disk,memory")
    options = parser.parse_args()
    few, many = (int(text) for text in options.clients.split(","))
    for kind in options.store.split(","):
        print(f"{options.method}, states {'on disk' if kind == 'disk' else 'in memory'}:")
        runs = {
            count: [measure(count, options.backbone, options.method, kind) for _ in range(options.repeats)]
            for count in (few, many)
        }
        values = {
            count: measure(count, options.backbone, options.method, kind, counting=True)["values"]
            for count in (few, many)
        }
        report(few, many, runs, values, kind)


if __name__ == "__main__":
    main()
