"""What a method runs, found by running it: two rounds of the contract kit's small federation, every pass recorded.

So there is no table of costs per method: phases, steps, statistics, extra forwards and server tasks are those that
training itself carries out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfl_platform.engines.worker import Worker
from pfl_platform.federation.components import Federation
from pfl_platform.federation.rounds import context, drive, one_round, prepare, trains
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.ledger.holding import Graph, watched
from pfl_platform.ledger.sampling import FlopMeter, Pass
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing.bench import Bench

SAMPLED = 61
"""Rounds of a planned run that are asked for their phases."""


@dataclass
class Turn:
    """What one actor did in one round. tokens: by kind of pass. updates: slot -> optimiser steps that it took part in.
    task: the last of its tasks that trained, or sent something. graphs: what its losses held for their way back."""

    tokens: dict[Pass, int] = field(default_factory=dict)
    passes: int = 0
    updates: dict[str, int] = field(default_factory=dict)
    task: Task | None = None
    graphs: set[Graph] = field(default_factory=set)

    def add(self, task: Task, meter: FlopMeter, keys: Sequence[str]) -> None:
        for kind, tokens in meter.tokens.items():
            self.tokens[kind] = self.tokens.get(kind, 0) + tokens
        self.passes += sum(meter.passes.values())
        for phase in task.phases:
            for step in phase.steps:
                for slot in {key.partition("/")[0] for key in keys if key in step.train}:
                    self.updates[slot] = self.updates.get(slot, 0) + phase.amount
        if task.phases or self.task is None:
            self.task = task

    @property
    def whole_steps(self) -> int:
        """How often every slot that trains here was updated."""
        return min(self.updates.values(), default=0)


@dataclass(frozen=True)
class Trace:
    """One method's second round (the first has no reply yet). clients: by client id. server: all other actors.
    prepared: what ran before round 0. trained: how many rounds like the traced one a client trains in, by its phases.
    """

    setup: Setup
    clients: Mapping[str, Turn]
    server: Turn
    before: Sequence[Task]  # of preparation
    prepared: Turn
    sending: int  # in how many rounds a client sends, of `rounds`
    rounds: int
    trained: float


class Watch(FlopMeter):
    """A meter that books passes alone: no dry row is run, and nothing is counted."""

    def known(self, kind: tuple[str, ...]) -> bool:
        return True

    def book(self, kind: tuple[str, ...], size: float) -> None:
        return


def always(meter: FlopMeter) -> Callable[[], FlopMeter]:
    return lambda: meter


@dataclass
class _Recorder:
    """Implements `Engine`; keeps what every task ran."""

    worker: Worker
    done: list[tuple[Task, FlopMeter, set[Graph]]] = field(default_factory=list)

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        outcomes = {}
        for task in tasks:
            meter = Watch()
            self.worker.place.meter = always(meter)
            graphs: set[Graph] = set()
            outcomes[task.actor] = self.worker.execute(watched(task, self.worker.host(task.backbone), meter, graphs))
            self.done.append((task, meter, graphs))
        return outcomes


def trace(
    method: str, backbones: tuple[str, str], folder: Path, *, steps: int, rounds: int, settings: Sequence[str] = ()
) -> Trace:
    """Runs two rounds of a method on three clients and two small backbones, and records the second.

    steps: local steps of each; what a method does once per round (a pass over public data, say) is spread over as many.
    rounds: of the run that is planned; in how many of them clients send is asked of the objective.
    """
    small = ["backbone_options.init=0", "training.batch_size=1", "evaluation.baseline=false", "evaluation.every=1000"]
    bench = Bench(method, folder, backbones, [*small, f"local_steps={steps}", *settings], rounds=max(rounds, 3))
    setup = build(bench.config(), bench.manager, bench.benchmark())
    store = MemoryStore()
    fed, worker = setup.federation(store), setup.worker(store)
    recorder = _Recorder(worker)
    progress = drive(prepare(fed, setup.parts), recorder)
    before = [task for task, _, _ in recorder.done]
    prepared = Turn()
    for task, meter, _ in recorder.done:
        prepared.add(task, meter, ())
    for index in range(2):
        recorder.done.clear()
        progress = drive(one_round(fed, setup.parts, progress, index), recorder).progress
    ids = [client.client_id for client in fed.clients]
    turns = {name: Turn() for name in ids}
    server = Turn()
    for task, meter, graphs in recorder.done:
        turn = turns.get(task.actor, server)
        turn.add(task, meter, list(worker.host(task.backbone).params))
        turn.graphs |= graphs
    objective, first = setup.parts.objective, fed.clients[0]
    sending = sum(objective.uploads(context(fed, first, index)) for index in range(rounds)) if setup.parts.up else 0
    return Trace(setup, turns, server, before, prepared, sending, rounds, _trained(fed, setup, rounds))


def _trained(fed: Federation, setup: Setup, rounds: int) -> float:
    """Rounds by what a client trains in them, over the traced one. Of many rounds some are asked, evenly spread."""

    def amount(index: int) -> int:
        return sum(phase.amount for phase in trains(context(fed, fed.clients[0], index), setup.parts))

    asked = sorted({round(place * (rounds - 1) / (SAMPLED - 1)) for place in range(SAMPLED)})
    return sum(map(amount, asked)) / len(asked) * rounds / max(1, amount(1))
