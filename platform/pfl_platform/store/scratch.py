"""A cache on disk: what was worked out once and may be needed again, such as a decoded picture.

It takes the same memory however much it holds, so what clients have in common does not grow with their number.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from typing import Any

import numpy as np

OVERHEAD = 16
"""Bytes that a record takes beyond its own: the digest of its key."""


class Scratch:
    """Bytes by key in a file without a name, which vanishes with the process. It may forget anything at any time.

    places: how many records it can know of. capacity: bytes of the file, under the system's folder for temporary files;
    the newest records stay. Nothing is created before the first `put`. A disk that is full only means that nothing more
    is kept. Not for several threads at once; a copy starts empty.

    >>> scratch = Scratch(places=64, capacity=1 << 20)
    >>> scratch.put(b"a", b"some bytes")
    >>> bytes(scratch.get(b"a") or b""), scratch.get(b"b"), len(scratch)
    (b'some bytes', None, 1)
    """

    def __init__(self, places: int, capacity: int) -> None:
        self.places = places
        self.capacity = capacity
        self._descriptor: int | None = None
        self._closed = places < 1 or capacity < 1
        # Filled in at once: pages that are touched one after another would look like growth. Positions count all bytes
        # ever written; in the file they are taken modulo the capacity.
        self._starts = np.full(max(1, places), -1, dtype=np.int64)
        self._lengths = np.full(max(1, places), 0, dtype=np.int64)
        self._marks = np.full(max(1, places), -1, dtype=np.int64)  # part of the key's digest
        self._head = 0

    def __len__(self) -> int:
        """How many records can still be read."""
        return int(np.count_nonzero((self._starts >= 0) & (self._starts >= self._head - self.capacity)))

    def get(self, key: bytes) -> memoryview | None:
        """A copy of what was put under this key, writable; None when it is not there (any more)."""
        if self._descriptor is None:
            return None
        tag = _digest(key)
        for place in self._places(tag):
            start, length = int(self._starts[place]), int(self._lengths[place])
            if start < 0 or start < self._head - self.capacity or self._marks[place] != _mark(tag):
                continue
            record = bytearray(os.pread(self._descriptor, OVERHEAD + length, start % self.capacity))
            if len(record) == OVERHEAD + length and record[:OVERHEAD] == tag:
                return memoryview(record)[OVERHEAD:]
        return None

    def put(self, key: bytes, data: bytes | bytearray | memoryview) -> None:
        """Keeps a copy; what is larger than the whole file is not kept."""
        size = OVERHEAD + len(data)
        if self._closed or size > self.capacity:
            return
        tag = _digest(key)
        # Of the two places of a key the one where it is already, or is free, or was written longer ago.
        mark = _mark(tag)
        place = min(self._places(tag), key=lambda place: (self._marks[place] != mark, self._starts[place]))
        start = self._head
        if start % self.capacity + size > self.capacity:  # no record goes around the end of the file
            start += self.capacity - start % self.capacity
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            written = os.pwrite(self._descriptor, b"".join((tag, data)), start % self.capacity)
        except OSError:
            written = 0
        if written != size:  # the disk is full, or there is none to write to
            self._closed = True
            self._starts[:] = -1
            return
        self._head = start + size
        self._starts[place], self._lengths[place], self._marks[place] = start, len(data), mark

    def _places(self, tag: bytes) -> tuple[int, int]:
        return int.from_bytes(tag[:8], "little") % self.places, int.from_bytes(tag[8:], "little") % self.places

    def _open(self) -> int:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, (self.places, self.capacity)


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=OVERHEAD).digest()


def _mark(tag: bytes) -> int:
    return int.from_bytes(tag[8:], "little") >> 1  # never that of an empty place
