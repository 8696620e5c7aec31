"""A public set from its file, in any of three forms of records."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_benchmarks.folder.content import digest_of
from pfl_benchmarks.folder.files import confined
from pfl_benchmarks.folder.pictures import Pictures
from pfl_benchmarks.folder.records import sample_of
from pfl_benchmarks.folder.splits import capped, content_keys
from pfl_benchmarks.publics.options import SETS, PublicOptions
from pfl_benchmarks.roots import find_root
from pfl_benchmarks.text.files import records
from pfl_platform.data import DATA, FixedBenchmark, Sample
from pfl_platform.errors import UserError


def load(name: str, options: PublicOptions) -> FixedBenchmark:
    """A benchmark without clients, whose only public set has the same name. Repeats are left out."""
    file = find_file(name, options)
    samples = read(name, file, options)
    kept = capped(samples, options.most, options.data_seed, "public", name)
    pictures = Pictures(options.max_pixels)
    pictures.add(kept, file, picture_folder(name, file.parent, options))
    pictures.check(options.check)
    keys = content_keys(kept.values(), pictures)
    first = {keys[sample.id]: sample for sample in reversed(list(kept.values()))}
    fresh = tuple(sample for sample in kept.values() if first[keys[sample.id]] is sample)
    sets = {name: fresh}
    return FixedBenchmark(name, (), digest_of((), (), sets, pictures), public_sets=sets)


def find_file(name: str, options: PublicOptions) -> Path:
    """The set's file: the named one, else the first of the published names that is there."""
    chosen = SETS[name]
    data = os.environ.get(DATA)
    there = next((folder for folder in chosen.folders if data and (Path(data) / folder).is_dir()), chosen.folders[0])
    root = find_root(options.root, there, chosen.title)
    names = (options.file,) if options.file else chosen.files
    found = next((root / each for each in names if (root / each).is_file()), None)
    if found is None:
        raise UserError(
            f"{root} holds none of the files of {chosen.title}: {', '.join(names)}; `pfl-platform data layout {name}` "
            "shows where they come from."
        )
    return confined(found, root)


def read(name: str, file: Path, options: PublicOptions) -> list[Sample]:
    """All records as samples, in file order; the pictures' folder is where their names are found."""
    return samples_in(file, picture_folder(name, file.parent, options), name)


def samples_in(file: Path, below: Path, name: str) -> list[Sample]:
    """All records of a file as samples, in file order. below: what picture names are relative to. name: before every
    sample's id."""
    read_ones = [(where, conversation(record, where)) for where, record in records(file)]
    if not read_ones:
        raise UserError(f"{file} holds no record.")
    ids = Counter(str(record.get("id", place)) for place, (_, record) in enumerate(read_ones))
    samples = []
    for place, (where, record) in enumerate(read_ones):
        own = str(record.get("id", place))
        sample_id = f"{name}/{own}" if ids[own] == 1 else f"{name}/{own}#{place}"
        samples.append(sample_of(record, where, below, sample_id, choices=False))
    return samples


def conversation(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A record in the form {id, image, conversations}: as it is, or made of {instruction, output} or {instruction,
    response}, with an `input` between them where there is one.

    >>> conversation({"instruction": "Say yes.", "response": "Yes."}, "an example")["conversations"]
    [{'from': 'human', 'value': 'Say yes.'}, {'from': 'gpt', 'value': 'Yes.'}]
    """
    if "conversations" in record:
        return record
    answer = next((key for key in ("output", "response") if key in record), None)
    if "instruction" not in record or answer is None:
        raise UserError(f"{where}: a record has 'conversations', or an 'instruction' with its 'output' or 'response'.")
    asked = record["instruction"]
    if isinstance(asked, str) and isinstance(record.get("input"), str) and record["input"].strip():
        asked = f"{asked}\n{record['input']}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": record[answer]}]
    return {**record, "conversations": turns}


def picture_folder(name: str, root: Path, options: PublicOptions) -> Path:
    """What the names of pictures are relative to: the folder that was named, else the first usual one that is there."""
    if options.pictures is not None:
        if not options.pictures.is_dir():
            raise UserError(f"The folder of pictures {options.pictures} does not exist or is no folder.")
        return options.pictures
    return next(root / folder for folder in SETS[name].pictures if (root / folder).is_dir())
