"""Files that are there whole or not at all.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed. Whoever looks, at whatever
moment the process died, sees the old content or the new one.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from pfl_platform.errors import RunStopped

Chunk: TypeAlias = bytes | memoryview

TEMPORARY = ".tmp"
"""Suffix of a file or folder that is being written. What carries it belongs to nobody and may be deleted."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_counter = itertools.count()


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process and no other call uses."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{next(_counter)}{TEMPORARY}")


def clear_temporary(folder: Path, older: float = 3600.0) -> None:
    """Deletes what processes that were killed have left in `folder` under temporary names, an hour ago or before."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - older:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_atomic(path: Path, chunks: Iterable[Chunk]) -> None:
    """Writes `chunks` one after the other to `path`; the parent folders are made.

    Errors: whatever `OSError` the system gives. The temporary file is removed before it is passed on.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "deep", "note.txt")
    >>> write_atomic(file, [b"two ", b"parts"])
    >>> file.read_text(), [entry.name for entry in file.parent.iterdir()]
    ('two parts', ['note.txt'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        # A process that died may have left this very name behind if its number is used again: start it afresh.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                _write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _write_all(descriptor: int, chunk: Chunk) -> None:
    """`os.write` may take only a part (a signal, more than 2 GiB at once)."""
    rest = memoryview(chunk).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some network file systems cannot flush a folder; the rename itself is still atomic there.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def stopping_run(folder: Path) -> Iterator[None]:
    """Turns a failed write inside a run into a `RunStopped`; whoever runs the run adds how to go on.

    >>> with stopping_run(Path("runs/a")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    pfl_platform.errors.RunStopped: The disk that holds runs/a is full; free some space.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        if number in _FULL:
            raise RunStopped(f"The disk that holds {folder} is full; free some space.") from error
        raise RunStopped(f"The folder {folder} cannot be written: {error}.") from error


def _error_number(error: Exception) -> int | None:
    """The system's number of a failed write. The tensor library's own writer tells it in words only."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(match[1]) if match else None
