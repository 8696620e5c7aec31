"""The benchmark: which tasks, which instances, which public set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfl_benchmarks.roots import find_root
from pfl_benchmarks.sni.instances import SniTask, read_task, sample_of
from pfl_benchmarks.sni.options import NAME, SniOptions
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData
from pfl_platform.errors import UserError, nearest

METRIC = "rouge_l"
DEFAULTS = {"evaluation": {"max_new_tokens": 32}}


def load(options: SniOptions) -> FixedBenchmark:
    """Reads the clients' tasks and the public set; everything is checked here."""
    root = find_root(options.root, NAME, "Super-NaturalInstructions", ("tasks", "splits"))
    split = find_split(root, options.split)
    tasks = choose_tasks(root, split, options)
    clients = tuple(
        _client(str(index), task, options.backbones[index % len(options.backbones)], options)
        for index, task in enumerate(tasks)
    )
    public = _public(root, split, tasks, options)
    sets = {"test_tasks": public} if public else {}
    return FixedBenchmark(NAME, clients, _digest(clients, public), defaults=DEFAULTS, public_sets=sets)


def find_split(root: Path, name: str | None) -> Path:
    """The split's folder: the named one, else `default`, else the only one."""
    known = {path.name: path for path in sorted((root / "splits").iterdir()) if (path / "train_tasks.txt").is_file()}
    chosen = name or ("default" if "default" in known else next(iter(known)) if len(known) == 1 else None)
    if chosen is None:
        raise UserError(f"{root / 'splits'} has {len(known)} splits; choose one with 'split': {', '.join(known)}.")
    if chosen not in known:
        raise UserError(f"{root / 'splits'} has no split '{chosen}' with a train_tasks.txt." + nearest(chosen, known))
    return known[chosen]


def choose_tasks(root: Path, split: Path, options: SniOptions) -> list[SniTask]:
    """The tasks named, or the largest by the number of instances; ties go by the order of the split file."""
    if options.tasks:
        twice = next((name for name in options.tasks if options.tasks.count(name) > 1), None)
        if twice:
            raise UserError(f"The option 'tasks' names '{twice}' twice.")
        tasks = [_read(root, name) for name in options.tasks]
    else:
        names = split_names(split / "train_tasks.txt")
        if len(names) < options.num_clients:
            raise UserError(f"{split} has {len(names)} train tasks, and num_clients is {options.num_clients}.")
        largest: list[SniTask] = []
        for name in names:  # only the largest so far are kept: all tasks together fill several gigabytes
            largest = sorted([*largest, _read(root, name)], key=lambda task: -len(task.instances))
            del largest[options.num_clients :]
        tasks = largest
    wanted = options.train_size + options.validation_size + options.test_size
    small = next((task for task in tasks if len(task.instances) < wanted), None)
    if small is not None:
        have = f"The task '{small.name}' has {len(small.instances)} different instances"
        raise UserError(f"{have}, and train_size, validation_size and test_size ask for {wanted} in sum.")
    return tasks


def split_names(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read(root: Path, name: str) -> SniTask:
    file = root / "tasks" / f"{name}.json"
    if not file.is_file():
        known = [path.stem for path in (root / "tasks").glob("*.json")]
        raise UserError(f"{file} does not exist." + (nearest(name, known) if known else ""))
    return read_task(file)


def _client(client_id: str, task: SniTask, backbone: str, options: SniOptions) -> ClientData:
    """Test instances are drawn first, so that they are the same whatever the size of the train set."""
    samples = _drawn(task, options.test_size + options.validation_size + options.train_size, options)
    test, validation = options.test_size, options.test_size + options.validation_size
    data = TaskData(
        task.name,
        "open-ended",
        METRIC,
        train=samples[validation:],
        validation=samples[test:validation],
        test=samples[:test],
        group=task.category,
    )
    return ClientData(client_id, backbone, (data,))


def _drawn(task: SniTask, size: int, options: SniOptions) -> tuple[Sample, ...]:
    from pfl_platform.rng import numpy_rng

    inputs = list(task.instances)
    order = numpy_rng(options.data_seed, NAME, task.name).permutation(len(inputs))[:size]
    return tuple(sample_of(task, inputs[int(index)], options.definition) for index in order)


def _public(root: Path, split: Path, tasks: Sequence[SniTask], options: SniOptions) -> list[Sample]:
    """Instances of the split's test tasks, without those whose prompt a client has."""
    file = split / "test_tasks.txt"
    if options.public_per_task == 0 or not file.is_file():
        return []
    taken = {task.name for task in tasks}
    private = {text for task in tasks for text in task.instances}
    samples: dict[str, Sample] = {}
    for name in split_names(file):
        if name not in taken:
            task = _read(root, name)
            kept = {text: outputs for text, outputs in task.instances.items() if text not in private}
            free = SniTask(task.name, task.definition, task.category, kept, task.ids)
            for sample in _drawn(free, options.public_per_task, options):
                samples.setdefault(sample.turns[0].human, sample)
    return list(samples.values())


def _digest(clients: Iterable[ClientData], public: Iterable[Sample]) -> str:
    """SHA-256 over everything that a run can read."""
    digest = hashlib.sha256()

    def note(samples: Iterable[Sample]) -> None:
        for sample in samples:
            digest.update(json.dumps([sample.id, sample.turns[0].human, sample.references]).encode())

    for client in clients:
        (task,) = client.tasks
        digest.update(json.dumps([client.client_id, client.backbone, task.name]).encode())
        for part in (task.train, task.validation, task.test):
            note(part)
    note(public)
    return digest.hexdigest()
