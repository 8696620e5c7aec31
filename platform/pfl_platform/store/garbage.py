"""Deletes tensors that nothing refers to any more.

A reference is an address anywhere in the JSON that is kept, so a new field in a record can never lose its tensors. Only
unreferenced files are deleted, one by one: a process that dies in between has merely deleted fewer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pfl_platform.store.atomic import TEMPORARY

_ADDRESS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Swept:
    """What was deleted: number of files, and bytes that they took."""

    files: int
    bytes: int


def references(files: Iterable[Path]) -> set[str]:
    """All addresses that occur in the given files; missing files have none."""
    found: set[str] = set()
    for file in files:
        with suppress(FileNotFoundError):
            found.update(match.decode() for match in _ADDRESS.findall(file.read_bytes()))
    return found


def sweep(folder: Path, keep: Iterable[str]) -> Swept:
    """Deletes the files below `folder` whose stem is not in `keep`."""
    kept = set(keep)
    files = size = 0
    for file in sorted(folder.glob("*/*")):
        if file.stem in kept or file.name.endswith(TEMPORARY):
            continue
        size += file.stat().st_size
        file.unlink()
        files += 1
    return Swept(files, size)


def clear_temporary(folder: Path) -> None:
    """Deletes what a process that died left half-written in a run folder. Only for who holds the run's lock."""
    for entry in list(_temporary(folder)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _temporary(folder: Path) -> Iterator[Path]:
    """At the depths at which the platform writes: the run folder, its folders, and theirs."""
    for pattern in ("", "*/", "*/*/"):
        yield from folder.glob(f"{pattern}.*{TEMPORARY}")
