"""The content of a whole federation: all its samples, and a digest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from pfl_benchmarks.folder.pictures import Pictures, paths_of
from pfl_platform.data import ClientData, Sample, TaskData


def samples_of(tasks: Iterable[TaskData]) -> list[Sample]:
    """All samples of some tasks."""
    return [sample for task in tasks for part in (task.train, task.validation, task.test) for sample in part]


def digest_of(
    clients: Iterable[ClientData],
    unseen: Iterable[TaskData],
    sets: Mapping[str, Sequence[Sample]],
    pictures: Pictures,
) -> str:
    """SHA-256 over everything that a run can read: tasks, samples in order, pictures."""
    digest = hashlib.sha256()

    def note(*parts: object) -> None:
        digest.update(json.dumps(parts, ensure_ascii=True).encode())

    def note_samples(samples: Iterable[Sample]) -> None:
        for sample in samples:
            turns = [(turn.human, turn.answer) for turn in sample.turns]
            accepted = [sample.references, sample.options] if sample.references else []
            note(sample.id, turns, [pictures.describe(path) for path in paths_of(sample)], *accepted)

    def note_task(task: TaskData) -> None:
        note("task", task.name, task.kind, task.metric)
        for part in (task.train, task.validation, task.test):
            note_samples(part)

    for client in clients:
        note("client", client.client_id, client.backbone)
        for task in client.tasks:
            note_task(task)
    for task in unseen:
        note_task(task)
    for name, samples in sets.items():
        note("public", name)
        note_samples(samples)
    return digest.hexdigest()
