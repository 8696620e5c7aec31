"""What benchmarks share when they say what is there of their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfl_benchmarks.text.drawing import Pool, overlap, unique
from pfl_benchmarks.text.files import records
from pfl_platform.errors import UserError
from pfl_platform.inventory import FileState


def counted(path: Path) -> Callable[[], int]:
    """Counts the records of a file, each of which must be an object."""
    return lambda: sum(1 for _ in records(path))


def lines_in(path: Path, header: int = 0) -> Callable[[], int]:
    """Counts the lines of a text file that are not empty."""

    def count() -> int:
        try:
            with path.open("rb") as file:
                return sum(1 for line in file if line.strip()) - header
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None

    return count


def overlaps_of(read: Callable[[], list[Pool]], files: list[FileState]) -> list[str]:
    """A sentence on the test samples that stand in train files too, where all files are there; or why that is not
    known."""
    if any(file.state != "there" for file in files):
        return ["Whether test samples stand in train files is known only once everything is there."]
    try:
        pools = read()
    except UserError as error:
        return [str(error)]
    found = [(pool.name, count, len(unique(pool.test))) for pool in pools if (count := overlap(pool))]
    if not found:
        return ["No test sample stands in the train file of its task."]
    return [
        f"Of {total} test samples of '{name}', {count} stand in its train file too." for name, count, total in found
    ]
