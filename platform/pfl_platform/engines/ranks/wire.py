"""Messages between ranks: a JSON object, and behind it, where there are any, the bytes of tensors in pieces.

Nothing is pickled. Tensors travel in the form in which they lie in files (`store.layout`), a piece at a time, so that
neither side holds a second copy of a large state.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.store.layout import file_chunks, file_length
from pfl_platform.store.reading import read_open

PIECE = 4 << 20
"""Bytes that are sent at once."""
TORN = (EOFError, OSError)
"""What a connection raises when the other process is gone."""


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(connection.recv_bytes())
    return found


def send_tensors(connection: Connection, tensors: Tensors) -> None:
    """A message that says how many bytes come, then the bytes."""
    send(connection, {"bytes": file_length(tensors)})
    send_bytes(connection, tensors)


def send_bytes(connection: Connection, tensors: Tensors) -> None:
    """The bytes of tensors alone, a piece at a time."""
    for chunk in file_chunks(tensors):
        rest = memoryview(chunk).cast("B")
        for start in range(0, len(rest), PIECE):
            connection.send_bytes(rest[start : start + PIECE])


def receive_tensors(connection: Connection, size: int) -> dict[str, Tensor]:
    """The tensors of which a message has announced so many bytes."""
    with open(os.memfd_create("tensors"), "w+b", buffering=0) as file:
        done = 0
        while done < size:
            piece = connection.recv_bytes()
            file.write(piece)
            done += len(piece)
        return read_open(file)


def stay_alert(connection: Connection) -> None:
    """Lets the system notice within a minute that the other machine is gone, not only that the process is."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        if line.family not in (socket.AF_INET, socket.AF_INET6):
            return
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options: Iterable[tuple[int, int]] = (
            (socket.TCP_KEEPIDLE, 30),
            (socket.TCP_KEEPINTVL, 10),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_NODELAY, 1),
        )
        for option, value in options:
            line.setsockopt(socket.IPPROTO_TCP, option, value)
