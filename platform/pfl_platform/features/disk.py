"""The tier on disk: features of pictures by content, for later runs and other processes.

A *shelf* is a folder of one kind of features (see `shelf`). It holds *segments*, safetensors files that are written
once, under a temporary name, and renamed; nobody changes them afterwards. Each record has the digest of its picture and
a checksum, so that a damaged one is worked out anew; a file that cannot be read counts as not there.

The budget holds for all shelves of a folder. Where it is used up, shelves that nobody has opened for a day give way,
the oldest first; else nothing more is kept. What other processes write at the same moment is seen at the next look.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_platform.store.atomic import clear_temporary, write_atomic
from pfl_platform.store.layout import file_chunks, raw
from pfl_platform.store.reading import Place, places_of, read_tensors

SEGMENT, LARGEST_SEGMENT = 8 << 20, 64 << 20
"""Bounds of how many bytes of features are gathered before they are written; between them, a part of the budget."""
DIGEST = 16
RESTING = 24 * 3600.0
"""Seconds after which a shelf that was not opened may give way."""
ABOUT = "about.json"


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """16 bytes that name some content.

    >>> digest(b"a picture").hex()[:8]
    '6d6f532c'
    """
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


@dataclass(frozen=True)
class _Segment:
    """One file: features are (records, ...). Their keys and checksums are held in memory."""

    file: Path
    place: Place

    def read(self, record: int) -> tuple[bytearray, Tensor]:
        """Bytes and values of one record."""
        data = bytearray(self.place.bytes // self.place.shape[0])
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.place.begin + record * len(data))
            if file.readinto(data) != len(data):
                raise OSError("cut off")
        values: Tensor = torch.frombuffer(data, dtype=self.place.dtype).reshape(self.place.shape[1:])
        return data, values


@dataclass
class _Gathered:
    """Features that are not written yet. In one piece of memory, as there may be thousands of pictures."""

    records: dict[bytes, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()

    def put(self, key: bytes, features: Tensor) -> None:
        self.dtype, self.shape = features.dtype, tuple(features.shape)
        self.records[key] = len(self.records)
        self.data += raw(features)

    def get(self, key: bytes) -> Tensor | None:
        record = self.records.get(key)
        if record is None:
            return None
        size = len(self.data) // len(self.records)
        part = self.data[record * size : (record + 1) * size]
        values: Tensor = torch.frombuffer(part, dtype=self.dtype).reshape(self.shape)
        return values

    def taken(self) -> dict[str, Tensor]:
        """All of it as a segment's tensors; nothing is left."""
        size, count = len(self.data) // len(self.records), len(self.records)
        whole = memoryview(self.data)
        sums = (digest(whole[number * size : (number + 1) * size]) for number in range(count))
        keys = bytearray(b"".join(key + check for key, check in zip(self.records, sums, strict=True)))
        features = torch.frombuffer(self.data, dtype=self.dtype).reshape(count, *self.shape)
        self.records, self.data = {}, bytearray()
        return {"features": features, "keys": torch.frombuffer(keys, dtype=torch.uint8).reshape(count, 2 * DIGEST)}


class Disk:
    """Features of one kind by the content of their pictures.

    folder: that of all shelves. name: this shelf's. about: what its features depend on, for people who look into the
    folder. budget: bytes of all shelves together. Nothing is created before something is kept. A disk that is full, or
    a folder that cannot be written, only means that nothing more is kept.
    """

    def __init__(self, folder: Path, name: str, about: Mapping[str, Any], budget: int) -> None:
        self._root = folder
        self._folder = folder / name
        self._about = about
        self._budget = budget
        self._seen: set[str] = set()
        self._segments: list[_Segment] = []
        self._words = np.zeros(0, dtype=np.uint64)  # first half of each key; sorted
        self._keys = np.zeros((0, 2 * DIGEST), dtype=np.uint8)  # each with its checksum behind it
        self._places = np.zeros((0, 2), dtype=np.int64)  # segment and record
        self._new = _Gathered()
        self._closed = budget < 1
        self._look()
        if self._segments:
            with contextlib.suppress(OSError):
                os.utime(self._folder)  # opened today
        weakref.finalize(self, _write, self._folder, self._root, about, budget, self._new)

    def __len__(self) -> int:
        return len(self._words) + len(self._new.records)

    def get(self, key: bytes) -> Tensor | None:
        """The features under a key; None where they are not there or are damaged."""
        if (fresh := self._new.get(key)) is not None:
            return fresh
        word = np.frombuffer(key, dtype=np.uint64)[0]
        for index in range(*(int(np.searchsorted(self._words, word, side)) for side in ("left", "right"))):
            kept = self._keys[index].tobytes()
            if kept[:DIGEST] != key:
                continue
            number, record = int(self._places[index, 0]), int(self._places[index, 1])
            try:
                data, features = self._segments[number].read(record)
            except OSError:
                continue
            if digest(data) == kept[DIGEST:]:
                return features
        return None

    def put(self, key: bytes, features: Tensor) -> None:
        """Keeps features; they are written together with others, or when the process ends."""
        if self._closed or key in self._new.records:
            return
        self._new.put(key, features)
        if len(self._new.data) >= min(max(SEGMENT, self._budget // 800), LARGEST_SEGMENT, self._budget):
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered, and finds what others have written."""
        self._closed = not _write(self._folder, self._root, self._about, self._budget, self._new)
        self._look()

    def _look(self) -> None:
        """Takes in segments that are new."""
        keys, places = [self._keys], [self._places]
        for file in sorted(self._folder.glob("*.safetensors")):
            if file.name in self._seen:
                continue
            self._seen.add(file.name)
            try:
                found = read_tensors(file, "keys".__eq__)["keys"].numpy()
                segment = _Segment(file, places_of(file)["features"])
            except (OSError, ValueError, KeyError):
                continue  # cut off, or deleted at this moment
            if found.dtype != np.uint8 or found.shape != (segment.place.shape[0], 2 * DIGEST):
                continue
            records = np.arange(len(found), dtype=np.int64)
            keys.append(found)
            places.append(np.stack([np.full_like(records, len(self._segments)), records], axis=1))
            self._segments.append(segment)
        if len(keys) > 1:
            merged = np.concatenate(keys)
            words = np.ascontiguousarray(merged[:, :8]).view(np.uint64).reshape(-1)
            order = np.argsort(words, kind="stable")
            self._words, self._keys, self._places = words[order], merged[order], np.concatenate(places)[order]


def _write(folder: Path, root: Path, about: Mapping[str, Any], budget: int, new: _Gathered) -> bool:
    """Writes what was gathered as one segment and forgets it; False where there is no room for it."""
    if not new.records:
        return True
    tensors = new.taken()
    try:
        if not _room(root, folder, budget, sum(tensor.nbytes for tensor in tensors.values())):
            return False
        if not (folder / ABOUT).is_file():
            write_atomic(folder / ABOUT, [json.dumps(dict(about), indent=1, sort_keys=True, default=str).encode()])
        name = f"{time.time_ns()}-{os.getpid()}-{digest(raw(tensors['keys'])).hex()[:8]}.safetensors"
        write_atomic(folder / name, file_chunks(tensors))
    except OSError:
        return False
    return True


def _room(root: Path, own: Path, budget: int, size: int) -> bool:
    """Whether so many bytes more fit; shelves that rest give way."""
    for shelf in _shelves(root):
        clear_temporary(shelf)
    sizes = {shelf: sum(_bytes(file) for file in shelf.iterdir()) for shelf in _shelves(root)}
    held = sum(sizes.values())
    resting = [(used, shelf) for shelf in sizes if shelf != own and (used := _mtime(shelf)) < time.time() - RESTING]
    for _, shelf in sorted(resting):
        if held + size <= budget:
            break
        shutil.rmtree(shelf, ignore_errors=True)
        held -= sizes[shelf]
    return held + size <= budget


def _shelves(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _mtime(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
