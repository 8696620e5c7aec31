"""A FLAN set from its files: one record file per client, one test file for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_benchmarks.flan.options import SETS, FlanOptions
from pfl_benchmarks.roots import find_root
from pfl_benchmarks.text.drawing import Pool, digest_of, draw, notes_on
from pfl_benchmarks.text.files import records, text_of
from pfl_platform.data import ClientData, FixedBenchmark, Sample, Turn
from pfl_platform.errors import UserError

CLIENTS = "8"
"""Folder of the client files, called by the number of clients."""
TEST = "flan_test*.jsonl"
METRIC = "rouge_1"
DEFAULTS: Mapping[str, Any] = {"evaluation": {"max_new_tokens": 48}, "stream": {"protocol": "static"}}
_OPTIONS = "OPTIONS:"


def load(name: str, options: FlanOptions) -> FixedBenchmark:
    """Reads every client's file and the test file; everything is checked here."""
    chosen = SETS[name]
    root = find_root(options.root, chosen.folder, chosen.title, (CLIENTS,))
    pools = read_pools(root, name)
    train, test = chosen.official
    sizes = options.model_copy(
        update={"train_size": options.train_size or train, "test_size": options.test_size or test}
    )
    clients = tuple(
        ClientData(str(index), options.backbones[index % len(options.backbones)], tuple(draw(pool, sizes, name)))
        for index, pool in enumerate(pools)
    )
    notes = notes_on(pools, options, chosen.official)
    return FixedBenchmark(name, clients, digest_of(clients), defaults=DEFAULTS, notes=notes)


def client_file(root: Path, index: int) -> Path:
    return root / CLIENTS / f"local_training_{index}.json"


def test_file(root: Path) -> Path:
    """The one test file of a set."""
    found = sorted(root.glob(TEST))
    if len(found) != 1:
        raise UserError(f"{root} must hold one test file {TEST}, and holds {len(found)}.")
    return found[0]


def read_pools(root: Path, name: str) -> list[Pool]:
    """The tasks in the clients' order. A client's file holds one task, whose name stands in its records."""
    file = test_file(root)
    tested: dict[str, list[Sample]] = {}
    for index, (where, record) in enumerate(records(file)):
        task = text_of(record, "task", where)
        tested.setdefault(task, []).append(_sample(record, where, f"{task}/test/{index}"))
    pools: list[Pool] = []
    for client, task in enumerate(SETS[name].tasks):
        path = client_file(root, client)
        learned = []
        for index, (where, record) in enumerate(records(path)):
            if (found := text_of(record, "task", where)) != task:
                raise UserError(f"{where}: the task is '{found}', and client {client} of '{name}' has '{task}'.")
            learned.append(_sample(record, where, f"{task}/train/{index}"))
        if not learned:
            raise UserError(f"{path} holds no record.")
        if task not in tested:
            raise UserError(f"{file} has no record of the task '{task}' of client {client}.")
        chosen = all(sample.options for sample in (*learned, *tested[task]))
        kind = "multi-choice" if chosen else "open-ended"
        pools.append(Pool(task, kind, METRIC, learned, tested[task]))  # type: ignore[arg-type]
    return pools


def _sample(record: Mapping[str, Any], where: str, name: str) -> Sample:
    instruction, output = text_of(record, "instruction", where), text_of(record, "output", where)
    options = shown(instruction)
    if options and output not in options:
        raise UserError(f"{where}: the output '{output}' is none of the options shown: {', '.join(options)}.")
    return Sample(name, (Turn(instruction, output),), options=options)


def shown(instruction: str) -> tuple[str, ...]:
    """The options that stand at an instruction's end, each on a line; none where it shows none.

    >>> shown("Do they mean the same?\\n\\nOPTIONS:\\n- no\\n- yes")
    ('no', 'yes')
    >>> shown("Name the capital of Peru.")
    ()
    """
    _, mark, after = instruction.rpartition(_OPTIONS)
    lines = [line.strip() for line in after.strip().splitlines()]
    if not mark or not lines or not all(line.startswith("- ") for line in lines):
        return ()
    return tuple(line[2:].strip() for line in lines)
