"""What is the same, and what goes where: content keys, validation sets, caps and overlap.

Two samples have the same content when they ask the same of the same pictures, whatever they answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pfl_benchmarks.folder.pictures import Pictures, paths_of
from pfl_platform.data import Sample, TaskData


@dataclass(frozen=True)
class Overlap:
    """How much of a task's test set stands in training data too: records, by content."""

    task: str
    num_test: int
    in_own_train: int
    in_any_train: int


@dataclass(frozen=True)
class Odd:
    """How many test answers of a multi-choice task are none of the options that their questions show."""

    task: str
    num_test: int
    odd: int


def odd_answers(tasks: Iterable[TaskData]) -> tuple[Odd, ...]:
    """One line per distinct multi-choice task that has any. Such items are scored by exact match."""
    from pfl_benchmarks.metrics.choice import chosen, letters_of

    def is_odd(sample: Sample) -> bool:
        letters = letters_of(sample)
        return all(chosen(gold, sample.options, letters) is None for gold in sample.gold)

    distinct = {task.name: task for task in tasks if task.kind == "multi-choice"}
    lines = (Odd(name, len(task.test), sum(map(is_odd, task.test))) for name, task in distinct.items())
    return tuple(line for line in lines if line.odd)


def content_keys(samples: Iterable[Sample], pictures: Pictures) -> dict[str, Hashable]:
    """Sample id -> a key that is equal exactly where the content is equal.

    Files are compared by size first; only where questions and sizes agree are bytes read.
    """
    unique = {sample.id: sample for sample in samples}
    asked = {name: tuple(turn.human for turn in sample.turns) for name, sample in unique.items()}
    files = {name: paths_of(sample) for name, sample in unique.items()}
    rough: dict[str, Hashable] = {
        name: (asked[name], tuple(pictures.size(path) for path in files[name])) for name in unique
    }
    count = Counter(rough.values())
    return {
        name: (asked[name], tuple(pictures.fingerprint(path) for path in files[name]))
        if files[name] and count[rough[name]] > 1
        else rough[name]
        for name in unique
    }


def capped(samples: Sequence[Sample], limit: int | None, *address: str | int) -> dict[int, Sample]:
    """The first `limit` of the samples in the order drawn at `address`, by index, in file order."""
    if limit is None or len(samples) <= limit:
        return dict(enumerate(samples))
    from pfl_platform.rng import numpy_rng

    kept = numpy_rng(*address).permutation(len(samples))[:limit]
    return {int(index): samples[int(index)] for index in sorted(kept)}


def cut_validation(
    train: Sequence[Sample],
    fraction: float,
    keys: Mapping[str, Hashable],
    elsewhere: Mapping[Hashable, int],
    *address: str | int,
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(train, validation): about `fraction` of the samples, drawn at `address`, go to validation.

    Copies of a content stay together. Content that stands in other files as well (`elsewhere` counts files, this one
    included) stays in train, so validation is disjoint from all train and test data.
    """
    wanted = min(max(round(fraction * len(train)), 1), len(train) - 1) if fraction > 0 else 0
    copies = Counter(keys[sample.id] for sample in train)
    free = [key for key in copies if elsewhere[key] == 1]
    if not wanted or not free:
        return tuple(train), ()
    from pfl_platform.rng import numpy_rng

    chosen: set[Hashable] = set()
    taken = 0
    for index in numpy_rng(*address).permutation(len(free)):
        if taken + copies[free[index]] <= wanted:
            chosen.add(free[index])
            taken += copies[free[index]]
        if taken == wanted:
            break
    return (
        tuple(sample for sample in train if keys[sample.id] not in chosen),
        tuple(sample for sample in train if keys[sample.id] in chosen),
    )


def overlaps(tasks: Iterable[TaskData], keys: Mapping[str, Hashable]) -> tuple[Overlap, ...]:
    """One line per distinct task, in order."""
    distinct = {task.name: task for task in tasks}
    train = {name: {keys[sample.id] for sample in task.train} for name, task in distinct.items()}
    anywhere = set().union(*train.values())
    return tuple(
        Overlap(
            name,
            len(task.test),
            sum(keys[sample.id] in train[name] for sample in task.test),
            sum(keys[sample.id] in anywhere for sample in task.test),
        )
        for name, task in distinct.items()
    )
