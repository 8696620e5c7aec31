"""What of a benchmark's files is there: the answer to `pfl-platform data check`.

A benchmark whose data are files says so with the hook `pfl_check_data`. What it expects and where its authors publish
it stands in `cards/<name>.yaml` beside its plugin, under `layout`, `folders`, `published_at` and `licence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pfl_platform.errors import UserError


@dataclass(frozen=True)
class FileState:
    """One file, or a group of files that are read as one.

    samples: how many it holds, where it could be read. official: how many the published one holds, where that is known.
    said: why it could not be read.
    """

    path: str
    state: Literal["there", "missing", "broken"]
    samples: int | None = None
    official: int | None = None
    said: str = ""


@dataclass(frozen=True)
class Inventory:
    """All files of a benchmark. notes: what else is to be said, such as test data that stand in training data. faults:
    why it cannot be read although each file can, such as a broken picture."""

    root: Path
    files: Sequence[FileState]
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()

    @property
    def whole(self) -> bool:
        """Whether everything is there and can be read."""
        return not self.faults and all(file.state == "there" for file in self.files)


def looked_at(
    path: Path, root: Path, count: Callable[[], int], official: int | None = None, name: str | None = None
) -> FileState:
    """The state of one file or folder: missing, broken (where `count` raises a `UserError`), or there."""
    shown = name or (str(path.relative_to(root)) if path.is_relative_to(root) else str(path))
    if not path.exists():
        return FileState(shown, "missing", official=official)
    try:
        return FileState(shown, "there", count(), official)
    except UserError as error:
        return FileState(shown, "broken", official=official, said=str(error))
