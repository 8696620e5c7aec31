"""Which of the batches that a task would see is the largest, found without opening a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pfl_platform.data import Sample
from pfl_platform.evaluation.surfaces import Cell
from pfl_platform.federation.tasks import Task
from pfl_platform.ledger.probe import batches
from pfl_platform.ledger.unpassed import plain, shown_all
from pfl_platform.training.surfaces import OpenSource, Source

if TYPE_CHECKING:
    from pfl_platform.adapters.host import Host
    from pfl_platform.engines.worker import Workplace
    from pfl_platform.ledger.stage import Hosts

LOOKS = 32
"""Batches of one source that are looked at in a turn."""
ITEMS = 200
"""Questions of a cell that are looked at."""


@dataclass(frozen=True)
class _Always(Source):
    """The same batch at every step."""

    samples: Sequence[Sample]

    def describe(self) -> Mapping[str, Any]:
        return {"ids": [sample.id for sample in self.samples]}

    def open(self, private: Any) -> OpenSource:
        return _OpenAlways(self.samples)


@dataclass(frozen=True)
class _OpenAlways:
    samples: Sequence[Sample]

    def batch(self, step: int) -> Sequence[Sample]:
        return self.samples

    def private(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class _Look:
    """What was seen of a source. largest: the batch with most positions, padding included, `size` of them. work: of a
    batch, in the mean, without padding (`Host.work`)."""

    largest: Sequence[Sample]
    size: int
    work: float


class Batches:
    """The batches of one task, by phase and by statistic with data of its own."""

    def __init__(self, task: Task, hosts: Hosts) -> None:
        self._task, self._hosts = task, hosts
        lengths = hosts.lengths(task.backbone)
        self._phases = [
            _look(phase.data.open({}), range(phase.first, phase.first + phase.amount), lengths) for phase in task.phases
        ]
        self._statistics = {
            item.name: _look(item.data.open({}), range(item.amount), lengths)
            for item in task.statistics
            if item.data is not None and item.every is None and item.amount
        }

    @property
    def size(self) -> int:
        """Positions of the largest batch."""
        return max((look.size for look in (*self._phases, *self._statistics.values())), default=0)

    def short(self, task: Task, steps: int) -> Task:
        """A task that sees so many times the largest batch of each source; see `unpassed` for who sees more."""
        phases = tuple(
            replace(phase, data=_Always(look.largest), amount=min(phase.amount, steps))
            for phase, look in zip(task.phases, self._phases, strict=True)
        )
        statistics = []
        for item in task.statistics:
            if item.name in self._statistics:
                short = copy(item) if not item.by_sample else shown_all(item, self._hosts, task.backbone)
                short.data, short.amount = _Always(self._statistics[item.name].largest), min(item.amount, steps)
                statistics.append(short)
            else:
                statistics.append(item)
        return replace(task, phases=phases, statistics=tuple(statistics))

    def flops(self, per_unit: Mapping[tuple[str, ...], float]) -> float:
        """Of the whole task, at what a unit of each kind of work takes."""
        counts = batches(self._task.phases, self._task.statistics)
        mean = {
            ("step", phase.name): look.work for phase, look in zip(self._task.phases, self._phases, strict=True)
        } | {("statistic", name): look.work for name, look in self._statistics.items()}
        usual = self._phases[0].work if self._phases else 0.0
        return sum(
            price * counts.get((kind[0], kind[1]), 0) * mean.get((kind[0], kind[1]), usual)
            for kind, price in per_unit.items()
        )


def _look(source: OpenSource, steps: range, lengths: Lengths) -> _Look:
    seen = [source.batch(step) for step in steps[:LOOKS]]
    sizes = [[lengths.of(sample) for sample in batch] for batch in seen]
    padded = [len(size) * max((positions for positions, _ in size), default=0) for size in sizes]
    place = max(range(len(seen)), key=padded.__getitem__)
    return _Look(seen[place], padded[place], sum(work for size in sizes for _, work in size) / len(seen))


class Lengths:
    """How many positions a host's backbone gives to a sample, and what a pass over it takes (`Host.work`)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, tuple[int, float]] = {}

    def of(self, sample: Sample) -> tuple[int, float]:
        if sample.id not in self._known:
            encoded = plain(self._host.backbone, [sample])
            self._known[sample.id] = (encoded.tokens, self._host.work(encoded))
        return self._known[sample.id]


def questions_of(task: Task, place: Workplace, size: int) -> dict[Cell, list[Sample]]:
    """The questions that a task's largest batch of them has, by cell."""
    pool: list[tuple[tuple[int, int], Cell, Sample]] = []
    for cell in task.score:
        items = place.cell_items(cell, place.cell_data(cell), task.actor, task.split)
        for sample in _some(items):
            pool.append((sample.prompt_length, cell, sample))
    pool.sort(key=lambda entry: entry[0])
    found: dict[Cell, list[Sample]] = {}
    for _, cell, sample in pool[-size:]:
        found.setdefault(cell, []).append(sample)
    return found


def _some(items: Sequence[Sample]) -> Iterable[Sample]:
    return (items[place] for place in range(min(len(items), ITEMS)))
