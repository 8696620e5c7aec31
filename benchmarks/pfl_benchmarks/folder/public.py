"""Public sets: record files of nobody's data, in the same form as the clients' (or that of LLaVA-Instruct)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from pfl_benchmarks.folder.files import confined
from pfl_benchmarks.folder.pictures import Check, Pictures
from pfl_benchmarks.folder.records import read_records
from pfl_benchmarks.folder.splits import capped, content_keys
from pfl_platform.data import Sample
from pfl_platform.errors import UserError

FOLDER = "public"
"""Folder of a federation that holds its public sets, one file each."""


def public_files(path: Path) -> list[Path]:
    """The record files of a public set: `path` itself, or the `*.json` below it or below its folder `public/`."""
    if path.is_file():
        return [path]
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"The public set {path} is neither a record file nor a folder with record files (*.json).")
    return [confined(file, path) for file in files]


def picture_root(file: Path) -> Path:
    """What the picture paths of a public file are relative to: its folder, or the parent of a folder `public/`."""
    return file.parent.parent if file.parent.name == FOLDER else file.parent


def read_public(
    path: Path,
    clients: Sequence[Sample] = (),
    *,
    root: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    check: Check = "auto",
    pictures: Pictures | None = None,
) -> Mapping[str, Sequence[Sample]]:
    """Public sets by the names of their files, without repeats and without anything that the `clients` have.

    root: what picture paths are relative to, see `picture_root`. limit: at most this many records are read per file.
    """
    pictures = pictures or Pictures()
    read: dict[str, list[Sample]] = {}
    for file in public_files(path):
        below = root or picture_root(file)
        records = read_records(file, below, f"{FOLDER}/{file.stem}", choices=False)
        kept = capped(records, limit, seed, FOLDER, file.stem)
        pictures.add(kept, file, below)
        read[file.stem] = list(kept.values())
    pictures.check(check)
    keys = content_keys([*clients, *(sample for samples in read.values() for sample in samples)], pictures)
    sets = {name: _fresh(samples, {keys[sample.id] for sample in clients}, keys) for name, samples in read.items()}
    if empty := next((name for name, samples in sets.items() if not samples), None):
        raise UserError(f"The public set '{empty}' of {path} has no sample that the clients do not have.")
    return sets


def _fresh(samples: Sequence[Sample], known: set[Hashable], keys: Mapping[str, Hashable]) -> list[Sample]:
    """The samples whose content is not yet known, each content once. Grows `known`."""
    fresh = []
    for sample in samples:
        if keys[sample.id] not in known:
            known.add(keys[sample.id])
            fresh.append(sample)
    return fresh
