"""Train, validation and test of clients, drawn from the samples of their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pfl_benchmarks.text.options import TextOptions
from pfl_platform.data import ClientData, Kind, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.outlines import counted_task


@dataclass(frozen=True)
class Pool:
    """What a task's files hold, in file order. Samples that ask the same may stand in them more than once."""

    name: str
    kind: Kind
    metric: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    group: str = ""


def asked(sample: Sample) -> str:
    """What a text sample asks."""
    return sample.turns[0].human


def unique(samples: Iterable[Sample]) -> list[Sample]:
    """Of samples that ask the same, the first."""
    found: dict[str, Sample] = {}
    for sample in samples:
        found.setdefault(asked(sample), sample)
    return list(found.values())


def overlap(pool: Pool) -> int:
    """Test samples that ask what a train sample asks."""
    learned = {asked(sample) for sample in pool.train}
    return sum(asked(sample) in learned for sample in unique(pool.test))


def draw(pool: Pool, options: TextOptions, benchmark: str, parts: int = 1) -> list[TaskData]:
    """The task for each of `parts` clients: train samples that are different for each, validation and test that are
    the same. Repeats are left out.

    Validation is drawn first, from what is not tested on, so that it stays the same whatever the size of the train
    set, and test does not depend on either.
    """
    from pfl_platform.rng import numpy_rng

    def shuffled(samples: Sequence[Sample], part: str) -> list[Sample]:
        order = numpy_rng(options.data_seed, benchmark, pool.name, part).permutation(len(samples))
        return [samples[int(index)] for index in order]

    tested = unique(pool.test)
    test = shuffled(tested, "test")[: options.test_size or None]
    forbidden = {asked(sample) for sample in tested}
    drawn = shuffled(unique(pool.train), "train")
    free = [sample for sample in drawn if asked(sample) not in forbidden]
    validation = free[: options.validation_size]
    held = {asked(sample) for sample in validation}
    train = [sample for sample in drawn if asked(sample) not in held]
    size = min(options.train_size or len(train), len(train) // parts)
    if len(validation) < options.validation_size or not size or not test:
        raise UserError(
            f"The task '{pool.name}' of {benchmark} has {len(drawn)} different train and {len(test)} test samples: too "
            f"few for {options.validation_size} of validation and {parts} client{'s' if parts > 1 else ''}."
        )
    return [
        TaskData(
            pool.name,
            pool.kind,
            pool.metric,
            train=train[part * size : (part + 1) * size],
            validation=validation,
            test=test,
            group=pool.group,
        )
        for part in range(parts)
    ]


def counted(name: str, metric: str, official: tuple[int, int], options: TextOptions, parts: int = 1) -> TaskData:
    """What `draw` would give one of `parts` clients, by the numbers of samples in the published files (train, test)."""
    train, test = (official[0] - options.validation_size) // parts, official[1]
    return counted_task(
        name,
        metric,
        min(train, options.train_size or train),
        min(test, options.test_size or test),
        validation=options.validation_size,
    )


def notes_on(pools: Iterable[Pool], options: TextOptions, official: tuple[int, int] | None = None) -> tuple[str, ...]:
    """A sentence on each task whose test samples stand in its train file too, and one where files hold fewer samples
    than `official` (train, test) clients have."""
    found, short = [], []
    for pool in pools:
        if count := overlap(pool):
            found.append(
                f"Of {len(unique(pool.test))} test samples of the task '{pool.name}', {count} stand in its train file "
                "too."
            )
        if official and (len(unique(pool.train)) < official[0] or len(unique(pool.test)) < official[1]):
            short.append(pool.name)
    if short and official:
        found.append(
            f"The files of {', '.join(short)} hold fewer samples than the published setting uses ({official[0]:,} and "
            f"{official[1]:,} per client): results are not comparable with published ones."
        )
    return tuple(found)


def digest_of(clients: Iterable[ClientData], unseen: Iterable[TaskData] = ()) -> str:
    """SHA-256 over everything that a run can read of text tasks."""
    digest = hashlib.sha256()

    def note(task: TaskData) -> None:
        digest.update(json.dumps([task.name, task.kind, task.metric]).encode())
        for part in (task.train, task.validation, task.test):
            for sample in part:
                turns = [(turn.human, turn.answer) for turn in sample.turns]
                digest.update(json.dumps([sample.id, turns, sample.gold, sample.options]).encode())
            digest.update(b"|")

    for client in clients:
        digest.update(json.dumps([client.client_id, client.backbone]).encode())
        for task in client.tasks:
            note(task)
    for task in unseen:
        note(task)
    return digest.hexdigest()
