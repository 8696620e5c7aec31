"""TensorBoard's event file, written in the thread that asks for it.

The library's own writer has a thread of its own, where a full disk ends in a traceback on the screen. A run writes a
few points per round, which needs no thread.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

_numbers = count()


class EventFile:
    """A new event file in `folder`, which is made. Errors: whatever `OSError` the system gives.

    purge_step: points of earlier files from this step on are void.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Closes the file; what can no longer be written is given up without a word."""
        with suppress(OSError):
            self._file.close()
