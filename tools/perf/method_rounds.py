"""A round of a method on the platform over the hand-written loop of the same method.

    python tools/perf/method_rounds.py [--methods A,B,...] [--backbone NAME] [--clients N] [--steps N] [--pairs N]

The second round of drake-synth, of several clients on one backbone, without evaluation: replies, adapters in and out,
local training, messages serialised and booked, averaging, states kept on disk; the loops of `by_hand.py` keep theirs in
memory. Both sides begin with the same params and see the same batches, and must end with the same average. They run in
turn; the median of the pairwise ratios is printed with the smallest and largest.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from by_hand import METHODS, Adapters, Client
from by_hand import one_round as hand_round
from loop_ratio import pairs, say
from torch import Tensor

from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.rounds import Progress, context, drive, one_round, prepare
from pfl_platform.federation.session import pins
from pfl_platform.federation.setup import build
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.run_folder import RunFolder

BOUND, RANK = 1.05, 8


@dataclass(frozen=True)
class Order:
    backbone: str
    clients: int
    steps: int
    pairs: int


def ratios(name: str, order: Order, folder: Path) -> tuple[list[float], float]:
    """Ratios of the second round, and by how much the two averages (of `sft`: first clients) differ at most."""
    manager = PluginManager()
    sets = [
        f"benchmark.num_clients={order.clients}", f"benchmark.backbones={order.backbone}", f"adapter.r={RANK}",
        f"local_steps={order.steps}", "rounds=3", "evaluation.every=3", "engine.threads=1",
    ]  # fmt: skip
    config = Resolver(manager).resolve(Request(name, benchmark="drake-synth", sets=sets))
    setup = build(config, manager)
    store = RunFolder.create(folder / name, config, pins(setup)).store
    fed, worker = setup.federation(store), setup.worker(store)
    engine = InProcessEngine(worker)
    start = drive(prepare(fed, setup.parts), engine)
    first = drive(one_round(fed, setup.parts, start, 0), engine).progress

    method = METHODS[name]
    other = manager.make("backbone", order.backbone, {})
    names = {site.path: site.name for site in fed.adapter.sites(fed.load(order.backbone))}
    adapters = Adapters(other, list(names), RANK, method.names)
    places = [f"{names[path]}/{part}" for path in adapters.paths for part in "AB"]

    def of(progress: Progress, slot: str, number: int) -> list[Tensor]:
        state = fed.store.get(progress.states[fed.clients[number].client_id])
        return [state[f"{slot}/{place}"] for place in places]

    shared = of(start, "global", 0) if "global" in method.names else []
    clients = []
    for number, client in enumerate(fed.clients):
        ctx = context(fed, client, 0)
        own = {"local": of(start, "local", number)} if "local" in method.names else {}
        clients.append(Client(ctx.source, ctx.local_steps, client.num_examples, own))  # type: ignore[arg-type]
    shared = hand_round(method, adapters, clients, shared)
    for client, data in zip(clients, fed.clients, strict=True):
        client.stream = context(fed, data, 1).source  # type: ignore[assignment]
    ends: dict[str, list[Tensor]] = {}

    def ours() -> float:
        """In a copy of the run's folder, where nothing of the round is known."""
        after_first = tempfile.mkdtemp(dir=folder)
        shutil.copytree(folder / name, after_first, dirs_exist_ok=True)
        fed.store = worker.place.store = RunFolder.open(Path(after_first)).store
        begun = time.perf_counter()
        after = drive(one_round(fed, setup.parts, first, 1), engine).progress
        seconds = time.perf_counter() - begun
        if shared:
            reply = setup.parts.aggregator.reply(fed, after.server, fed.clients[0].client_id)
            ends["ours"] = [reply[f"global/{place}"] for place in places]
        else:
            ends["ours"] = of(after, "local", 0)
        return seconds

    def theirs() -> float:
        mine = [replace(client, own=dict(client.own), moments=copy.deepcopy(client.moments)) for client in clients]
        begun = time.perf_counter()
        average = hand_round(method, adapters, mine, shared)
        seconds = time.perf_counter() - begun
        ends["theirs"] = average or mine[0].own["local"]
        return seconds

    found = pairs(ours, theirs, order.pairs)
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(ends["ours"], ends["theirs"], strict=True))
    return found, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    order = Order(asked.backbone, asked.clients, asked.steps, asked.pairs)
    for name in asked.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found, off = ratios(name, order, Path(folder))
        say(f"{name}, a round over the hand-written one (ends differ by {off:.1e})", found, BOUND)


if __name__ == "__main__":
    main()
