"""The eight tasks from their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_benchmarks.commonsense.options import NAME, OFFICIAL, TASKS, CommonsenseOptions
from pfl_benchmarks.roots import find_root
from pfl_benchmarks.text.drawing import Pool, digest_of, draw, notes_on
from pfl_benchmarks.text.files import records, text_of
from pfl_platform.data import ClientData, FixedBenchmark, Sample, Turn
from pfl_platform.errors import UserError, nearest

METRIC = "choice"
DEFAULTS: Mapping[str, Any] = {"evaluation": {"max_new_tokens": 32}, "stream": {"protocol": "static"}}
_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


def load(options: CommonsenseOptions) -> FixedBenchmark:
    """Reads every task's files; everything is checked here."""
    root = find_root(options.root, NAME, "the commonsense tasks of LLM-Adapters", ("dataset",)) / "dataset"
    pools = [read_pool(root, name) for name in choose(options.tasks)]
    tasks = [
        (pool.name if options.clients_per_task == 1 else f"{pool.name}-{part}", task)
        for pool in pools
        for part, task in enumerate(draw(pool, options, NAME, options.clients_per_task))
    ]
    clients = tuple(
        ClientData(client_id, options.backbones[index % len(options.backbones)], (task,))
        for index, (client_id, task) in enumerate(tasks)
    )
    official = (OFFICIAL[0] * options.clients_per_task, OFFICIAL[1])
    return FixedBenchmark(
        NAME, clients, digest_of(clients), defaults=DEFAULTS, notes=notes_on(pools, options, official)
    )


def choose(names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks named, or all."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"'{NAME}' has no task '{name}'." + nearest(name, TASKS))
        if names.count(name) > 1:
            raise UserError(f"The option 'tasks' names '{name}' twice.")
    return names or TASKS


def read_pool(root: Path, name: str) -> Pool:
    """One task: `train.json` and `test.json` in its folder."""

    def samples(part: str) -> list[Sample]:
        read = enumerate(records(root / name / f"{part}.json"))
        return [_sample(record, where, f"{name}/{part}/{index}") for index, (where, record) in read]

    return Pool(name, "multi-choice", METRIC, samples("train"), samples("test"))


def _sample(record: Mapping[str, Any], where: str, name: str) -> Sample:
    """Learned is the sentence `output`; accepted is the option `answer`, which it names."""
    instruction, more = text_of(record, "instruction", where), text_of(record, "input", where, empty=True)
    answer, output = text_of(record, "answer", where), text_of(record, "output", where)
    options = answer_format(instruction)
    if not options:
        raise UserError(f"{where}: the instruction does not end in 'Answer format: a/b/...'.")
    if answer not in options:
        raise UserError(f"{where}: the answer '{answer}' is none of the options {', '.join(options)}.")
    if not re.search(rf"\b{re.escape(answer)}\b", output):
        raise UserError(f"{where}: the output '{output}' does not name the answer '{answer}'.")
    human = f"{instruction}\n{more}" if more else instruction
    return Sample(name, (Turn(human, output),), options=options, references=(answer,))


def answer_format(instruction: str) -> tuple[str, ...]:
    """The options that an instruction allows, as its last words say.

    >>> answer_format("Is it so?\\n\\nAnswer format: true/false")
    ('true', 'false')
    """
    found = _FORMAT.search(instruction)
    return tuple(found.group(1).split("/")) if found else ()
