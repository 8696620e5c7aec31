"""The benchmark: which tasks, which rows are learned, validated and tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pfl_benchmarks.glue.options import NAME, GlueOptions
from pfl_benchmarks.glue.tables import read_table
from pfl_benchmarks.glue.tasks import TASKS, GlueTask
from pfl_benchmarks.roots import find_root
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData
from pfl_platform.errors import UserError, nearest
from pfl_platform.rng import numpy_rng

TRAIN = "train.tsv"
DEFAULTS = {"evaluation": {"max_new_tokens": 8}}


def load(options: GlueOptions) -> FixedBenchmark:
    """Reads every client's files; everything is checked here."""
    root = find_root(options.root, NAME, "GLUE")
    clients = tuple(
        ClientData(task.name, options.backbones[index % len(options.backbones)], (_data(root, task, options),))
        for index, task in enumerate(choose(options.tasks))
    )
    return FixedBenchmark(NAME, clients, _digest(clients), defaults=DEFAULTS)


def choose(names: tuple[str, ...]) -> list[GlueTask]:
    """The tasks named, or all."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"GLUE has no task '{name}'." + nearest(name, TASKS))
        if names.count(name) > 1:
            raise UserError(f"The option 'tasks' names '{name}' twice.")
    return [TASKS[name] for name in names or TASKS]


def _data(root: Path, task: GlueTask, options: GlueOptions) -> TaskData:
    """One task. Validation rows are drawn first, so that they are the same whatever the size of the train set."""
    folder = root / task.name
    if not folder.is_dir():
        raise UserError(f"{root} has no folder '{task.name}'; name the tasks that are there with the option 'tasks'.")
    tested = _samples(folder / task.test, task, options)
    test = _drawn(list(tested.values()), options.test_size or len(tested), options, task, task.test)
    test.sort(key=_line)
    known = _samples(folder / TRAIN, task, options)
    free = [sample for human, sample in known.items() if human not in tested]
    rest = len(free) - options.validation_size
    wanted = options.train_size or max(rest, 1)
    if wanted > rest:
        raise UserError(
            f"{folder / TRAIN} has {len(free)} different rows that are not tested on; validation_size "
            f"{options.validation_size} and train_size {options.train_size or 'of at least 1'} ask for "
            f"{options.validation_size + wanted}."
        )
    drawn = _drawn(free, options.validation_size + wanted, options, task, TRAIN)
    return TaskData(
        task.name,
        task.kind,
        task.metric,
        train=drawn[options.validation_size :],
        validation=drawn[: options.validation_size],
        test=test,
    )


def _samples(path: Path, task: GlueTask, options: GlueOptions) -> dict[str, Sample]:
    """Samples by prompt, in file order; of rows that ask the same, the first."""
    found: dict[str, Sample] = {}
    for line in read_table(path, task.columns, task.positions, skip_broken=options.skip_broken):
        sample = task.sample(line, f"{task.name}/{path.stem}/{line.number}")
        found.setdefault(sample.turns[0].human, sample)
    if not found:
        raise UserError(f"{path} has no rows.")
    return found


def _drawn(samples: list[Sample], size: int, options: GlueOptions, task: GlueTask, part: str) -> list[Sample]:
    """`size` samples without replacement, in an order of their own."""
    if size > len(samples):
        raise UserError(f"The file {part} of {task.name} has {len(samples)} different rows, and {size} are asked for.")
    order = numpy_rng(options.data_seed, NAME, task.name, part).permutation(len(samples))[:size]
    return [samples[int(index)] for index in order]


def _line(sample: Sample) -> int:
    return int(sample.id.rpartition("/")[2])


def _digest(clients: Iterable[ClientData]) -> str:
    """SHA-256 over everything that a run can read."""
    digest = hashlib.sha256()
    for client in clients:
        (task,) = client.tasks
        digest.update(json.dumps([client.client_id, client.backbone, task.metric]).encode())
        for part in (task.train, task.validation, task.test):
            for sample in part:
                digest.update(json.dumps([sample.id, sample.turns[0].human, sample.gold, sample.options]).encode())
            digest.update(b"|")
    return digest.hexdigest()
