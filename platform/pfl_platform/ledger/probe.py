"""What a method's run will cost, found by a short probe on the federation's own clients.

The probe runs a few rounds of the run, each with a few local steps, through the one training loop: the first, the
middle and the last, and any that differ in kind (nothing is sent any more, there is another phase). Nothing is scored,
and what it trains is thrown away. It gives prices: FLOPs and seconds of a local step and of a look of each statistic,
by client; bytes of a turn; what the server's training takes. How often each of these occurs in a run of so many rounds
and local steps is then asked of the method itself, so a sketch on every tenth batch, halves of a round and fixed costs
come out as they are.

FLOPs and bytes are the ledger's, so equal probes give equal prices. Seconds are this machine's, now.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

from pfl_platform.engines.worker import Worker
from pfl_platform.federation.cells import evaluated
from pfl_platform.federation.cohorts import select
from pfl_platform.federation.components import ClientContext, Federation
from pfl_platform.federation.rounds import Parts, context, drive, measures, one_round, prepare, trains
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Cost, Outcome, Task
from pfl_platform.ledger.costs import amount
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.store import garbage
from pfl_platform.store.disk import DiskStore
from pfl_platform.training.surfaces import Phase, Statistic

STEPS = 3
"""Local steps of a probed round, where the run has as many."""
MOST = 4
"""Batches of a phase that are run; longer ones (a server's, say) are priced by these."""

Kind: TypeAlias = tuple[str, str]
"""("step", phase) or ("statistic", name)."""
Way: TypeAlias = tuple[bool, bool, bool]
"""Whether it is the first round, and whether a client sends and receives in it."""


@dataclass
class Price:
    """What one batch of a kind costs. flops: of all batches that were seen. seconds: by part of the batch."""

    flops: float = 0.0
    batches: int = 0
    seconds: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def of(self, quantity: str) -> float:
        if quantity == "flops":
            return self.flops / max(1, self.batches)
        return sum(median(times) for times in self.seconds.values())  # a first time may be slow; it counts once


class Clock(FlopMeter):
    """A meter that also keeps what was booked on each kind of work, and how long it took."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[tuple[str, ...], float] = {}
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        self._begun = time.perf_counter()
        self._at_work: tuple[tuple[str, ...], float] | None = None

    def known(self, kind: tuple[str, ...]) -> bool:
        """The loop asks before each batch of a kind, and has a dry run made where the answer is no."""
        now = time.perf_counter()
        self._close(now)
        found = super().known(kind)
        self._at_work = (kind, now) if found else None
        return found

    def measure(self, kind: tuple[str, ...], size: Callable[[], float], run: Callable[[], object]) -> None:
        super().measure(kind, size, run)
        self._at_work = (kind, time.perf_counter())  # a dry run is in nobody's time

    def book(self, kind: tuple[str, ...], size: float) -> None:
        before = self.total
        super().book(kind, size)
        self.flops[kind] = self.flops.get(kind, 0.0) + self.total - before

    def end(self, train_seconds: float) -> None:
        """Ends the last batch where the training of the task ended."""
        self._close(self._begun + train_seconds)

    def _close(self, now: float) -> None:
        if self._at_work is not None:
            kind, begun = self._at_work
            self.seconds.setdefault(kind, []).append(max(0.0, now - begun))
            self._at_work = None


def batches(phases: Sequence[Phase], statistics: Sequence[Statistic]) -> dict[Kind, int]:
    """How many batches of each kind a task has.

    >>> from pfl_platform.training.streams import Epochs
    >>> batches([Phase("local", (), 25, Epochs((), 4, 0, ""))], ())
    {('step', 'local'): 25}
    """
    found: dict[Kind, int] = {}
    for phase in phases:
        found["step", phase.name] = found.get(("step", phase.name), 0) + phase.amount
    for item in statistics:
        if item.every is not None:
            looks = sum(-(-phase.amount // item.every) for phase in phases)
        else:
            looks = item.amount if item.data is not None else 0
        found["statistic", item.name] = looks
    return found


@dataclass
class _Turn:
    """One task that was run: whole as the method wanted it, ran as it was run."""

    task: Task
    whole: dict[Kind, int]
    ran: dict[Kind, int]
    clock: Clock
    outcome: Outcome

    def prices(self, into: dict[Kind, Price]) -> dict[Kind, Price]:
        for kind, count in self.ran.items():
            price = into.setdefault(kind, Price())
            price.batches += count
            price.flops += sum(value for name, value in self.clock.flops.items() if name[:2] == kind)
            for name, times in self.clock.seconds.items():
                if name[:2] == kind:
                    price.seconds.setdefault(name, []).extend(times)
        return into

    def beside(self, prices: Mapping[Kind, Price]) -> float:
        """Seconds of training that are in no batch: what a turn takes however many there are."""
        inside = sum(prices[kind].of("seconds") * count for kind, count in self.ran.items())
        return max(0.0, self.outcome.cost.train_seconds - inside)

    def total(self, quantity: str) -> float:
        """What the whole task costs by its own prices."""
        if quantity == "bytes":
            return amount(asdict(self.outcome.cost), quantity)
        prices = self.prices({})
        found = sum(prices[kind].of(quantity) * count for kind, count in self.whole.items())
        return found + (self.beside(prices) if quantity == "seconds" else 0.0)


@dataclass
class _Engine:
    """Implements `Engine`: runs tasks in short, and keeps what each has cost. keep: whether it does, by now."""

    worker: Worker
    turns: list[_Turn] = field(default_factory=list)
    before: list[Cost] = field(default_factory=list)
    keep: bool = False

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        return {task.actor: self._one(task) for task in tasks}

    def _one(self, task: Task) -> Outcome:
        if not self.keep:
            outcome = self.worker.execute(task)
            self.before.append(outcome.cost)
            return outcome
        short = tuple(replace(phase, amount=min(phase.amount, MOST)) for phase in task.phases)
        clocks: list[Clock] = []

        def meter() -> Clock:
            clocks.append(Clock())
            return clocks[-1]

        self.worker.place.meter = meter
        outcome = self.worker.execute(replace(task, phases=short, score=(), recipe=None))
        if clocks:  # else it was done in another run
            clocks[0].end(outcome.cost.train_seconds)
            whole, ran = batches(task.phases, task.statistics), batches(short, task.statistics)
            self.turns.append(_Turn(task, whole, ran, clocks[0], outcome))
        return outcome


@dataclass
class Probe:
    """A method that was measured. fed: the federation, while its scratch folder is there. One that was not measured
    knows its local steps alone."""

    fed: Federation
    parts: Parts
    _prices: dict[str, dict[Kind, Price]] = field(default_factory=dict)  # by client
    _beside: dict[str, float] = field(default_factory=dict)  # seconds of a turn, by client
    _sent: dict[str, dict[Way, float]] = field(default_factory=dict)  # bytes of a turn, by client
    _rest: dict[int, list[_Turn]] = field(default_factory=dict)  # what was no client's turn, by round
    _before: list[Cost] = field(default_factory=list)  # of preparation
    worker: Worker | None = None
    """What carried the tasks out, while the probe lasts."""
    aside: list[float] = field(default_factory=list)
    """Seconds of each probed round that were no training: swapping, the server's sums, writing."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Client id -> the address of its state after the last probed round."""

    def cost(self, quantity: str, rounds: int, local_steps: int) -> float:
        """FLOPs, bytes or seconds of a run of so many rounds and local steps, preparation included; for `steps`, the
        local steps in it."""
        config = self.fed.config.model_copy(update={"rounds": rounds, "local_steps": local_steps})
        fed = replace(self.fed, config=config)
        found = self.before(quantity)
        for index in range(rounds):
            for client in select(fed, index):
                ctx = context(fed, client, index)
                found += ctx.local_steps if quantity == "steps" else self._turn(ctx, quantity)
            found += self._others(fed, index, quantity) if quantity != "steps" else 0
        return found

    def before(self, quantity: str) -> float:
        """What comes before round 0; whatever an earlier run has computed costs what it cost then."""
        return sum(amount(asdict(cost), quantity) for cost in self._before) if quantity != "steps" else 0.0

    def check(self, rounds: int, local_steps: int) -> None:
        """Raises `UserError` where a component cannot run so many."""
        config = self.fed.config.model_copy(update={"rounds": rounds, "local_steps": local_steps})
        for component in self.parts.components:
            component.check(replace(self.fed, config=config))

    def _turn(self, ctx: ClientContext, quantity: str) -> float:
        name = ctx.client.client_id
        if quantity == "bytes":
            return float(self._known(self._sent, name, way_of(ctx, self.parts), 0.0))
        counts = batches(trains(ctx, self.parts), measures(ctx, self.parts))
        free = Price()
        prices: dict[Kind, Price] = {kind: self._known(self._prices, name, kind, free) for kind in counts}
        found = sum(prices[kind].of(quantity) * count for kind, count in counts.items())
        if quantity == "seconds":
            found += self._beside.get(name) or fmean(self._beside.values())
        return found

    def _known(self, table: Mapping[str, Mapping[Any, Any]], name: str, key: Any, default: Any) -> Any:
        """A client's own figure; where it was in no probed round, that of one with the same backbone, or of any."""
        near = sorted(table, key=lambda other: (other != name, self.fed.host_of(other) != self.fed.host_of(name)))
        return next((table[other][key] for other in near if key in table[other]), default)

    def _others(self, fed: Federation, index: int, quantity: str) -> float:
        """What is no client's turn, as it was in the nearest probed round before (or after) of the same kind."""
        due = _due(fed, self.parts, index)
        alike = [number for number in self._rest if _due(self.fed, self.parts, number) == due] or list(self._rest)
        nearest = max((number for number in alike if number <= index), default=min(alike))
        return sum(turn.total(quantity) for turn in self._rest[nearest])

    def take(self, index: int, turns: Sequence[_Turn]) -> None:
        """Sorts what was run in a round."""
        clients = {client.client_id: client for client in self.fed.clients}
        self._rest[index] = [turn for turn in turns if turn.task.stage != "round"]
        for turn in turns:
            if turn.task.stage == "round":
                name = turn.task.actor
                ctx = context(self.fed, clients[name], index)
                prices = turn.prices(self._prices.setdefault(name, {}))
                self._beside[name] = turn.beside(prices)  # of the last one, when nothing was done for the first time
                self._sent.setdefault(name, {})[way_of(ctx, self.parts)] = amount(asdict(turn.outcome.cost), "bytes")


@contextmanager
def probing(setup: Setup) -> Iterator[Probe]:
    """Measures the method of a run; what was measured can be asked inside the block, while scratch files are there.

    Preparation runs as it would in the run. Raises what a run of the method raises.
    """
    config = setup.config
    few = {"local_steps": min(STEPS, config.local_steps), "tune": None, "budget": None}
    setup = replace(setup, config=config.model_copy(update=few))
    with tempfile.TemporaryDirectory(prefix="pfl-probe-") as folder:
        store = DiskStore(Path(folder))
        fed, parts = setup.federation(store), setup.parts
        engine = _Engine(setup.worker(store))
        probe = Probe(fed, parts, worker=engine.worker)
        progress = drive(prepare(fed, parts), engine)
        engine.keep = True
        probe._before = engine.before
        waiting = rounds_of(fed, parts)
        while waiting:
            index = waiting.pop(0)
            begun = time.perf_counter()
            progress = drive(one_round(fed, parts, progress, index), engine).progress
            trained = sum(turn.outcome.cost.train_seconds for turn in engine.turns)
            probe.aside.append(time.perf_counter() - begun - trained)
            probe.states = progress.states
            probe.take(index, engine.turns)
            engine.turns = []
            _sweep(store, {**asdict(progress), "frozen": fed.frozen, "prepared": fed.prepared})
            waiting = waiting or _between(probe)
        yield probe


def rounds_of(fed: Federation, parts: Parts) -> list[int]:
    """The rounds that are probed, in order; see the module."""
    rounds = fed.config.rounds
    chosen = {0, rounds // 2, rounds - 1}
    kinds = {index: _kind(fed, parts, index) for index in range(rounds)}
    for index, kind in kinds.items():
        if kind not in [kinds[number] for number in chosen]:
            chosen.add(index)
    return sorted(chosen)


def _kind(fed: Federation, parts: Parts, index: int) -> Any:
    """What tells a round from others, as far as can be known beforehand."""
    ctx = context(fed, fed.clients[0], index)
    kinds = sorted(batches(trains(ctx, parts), measures(ctx, parts)))
    return (index == 0, *way_of(ctx, parts), kinds, _due(fed, parts, index))


def way_of(ctx: ClientContext, parts: Parts) -> Way:
    return ctx.round_index == 0, parts.objective.uploads(ctx), parts.objective.downloads(ctx)


def _due(fed: Federation, parts: Parts, index: int) -> bool:
    """Whether an evaluation may take training of its own: only a personalizer measures anything in it."""
    return parts.personalizer is not None and evaluated(fed, index)


def _between(probe: Probe) -> list[int]:
    """A round between two of which the server trained in one alone: it may begin late, or stop after some round."""
    known = sorted(probe._rest)
    for early, late in pairwise(known):
        trained = [any(turn.whole for turn in probe._rest[number]) for number in (early, late)]
        if late - early > 1 and trained[0] != trained[1]:
            return [(early + late) // 2 if early else 1]  # what only the first round lacks is common
    return []


def _sweep(store: DiskStore, held: Mapping[str, Any]) -> None:
    """Deletes what no later round reads, so that the probe takes the room of one round."""
    file = store.folder / "held.json"
    file.write_text(json.dumps(held, default=str), encoding="utf-8")
    kept = garbage.references([file])
    for part in ("tensors", "texts"):
        garbage.sweep(store.folder / part, kept)
