"""One process per run folder.

The lock is the system's (`flock`), so it ends with the process, however that ends; the file itself stays and only says
who holds it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfl_platform.errors import UserError


@contextmanager
def locked(file: Path, what: Path) -> Iterator[None]:
    """Holds `file` locked. `what` is named in the sentence when another process has it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with locked(folder / ".lock", folder):
    ...     pass
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"{what} cannot be locked for this process ({error}).") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"Another process ({holder}) is working in {what}; wait for it to end, or stop it."
            ) from None
        except OSError as error:
            raise UserError(
                f"{what} cannot be locked ({error}); its file system knows no locks, so choose a folder on another one."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
