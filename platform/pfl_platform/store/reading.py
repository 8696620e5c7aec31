"""Reads tensors from a file of the store, and no more of it than was asked for.

The form is that of `layout`. It is read here and not by `safetensors.safe_open`, which keeps some tens of bytes for
every tensor it has ever handed out (seen with 0.8.0). A server reads the updates of all clients for each of them, so
that sums to more than the states themselves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfl_platform.store.layout import DTYPES, raw

_BY_NAME: Mapping[str, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """The tensors with the keys that are wanted, sorted by key. Each owns its memory.

    Errors: `ValueError` saying what is wrong with the file; `OSError` when it cannot be read at all.

    >>> import tempfile
    >>> from pfl_platform.store.layout import file_chunks
    >>> file = Path(tempfile.mkdtemp(), "two.safetensors")
    >>> _ = file.write_bytes(b"".join(file_chunks({"b": torch.ones(2), "a": torch.zeros(1)})))
    >>> read_tensors(file), read_tensors(file, "b".__eq__)
    ({'a': tensor([0.]), 'b': tensor([1., 1.])}, {'b': tensor([1., 1.])})
    """
    with path.open("rb", buffering=0) as file:
        return read_open(file, wanted)


def tensor_names(path: Path) -> tuple[str, ...]:
    """All keys of a file, sorted, from its header alone. Errors as in `read_tensors`."""
    with path.open("rb", buffering=0) as file:
        return tuple(sorted(_header(file)[0]))


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file: its first byte and their number."""

    begin: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def places_of(path: Path) -> dict[str, Place]:
    """The place of every tensor, by key, from the file's header alone. Errors as in `read_tensors`."""
    with path.open("rb", buffering=0) as file:
        entries, begin = _header(file)
    return {
        key: Place(begin + start, stop - start, _BY_NAME[entry["dtype"]], tuple(entry["shape"]))
        for key, entry in entries.items()
        for start, stop in [entry["data_offsets"]]
    }


def read_open(file: FileIO, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """The same of a file that is open, unbuffered, whatever its position."""
    file.seek(0)
    entries, begin = _header(file)
    return {key: _read(file, begin, key, entries[key]) for key in sorted(entries) if wanted(key)}


def _header(file: FileIO) -> tuple[dict[str, Any], int]:
    """The entries by key, checked against the file's length, and where the values begin."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    if size < 8 or size < begin:
        raise ValueError("it is shorter than its header")
    entries = json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    end = begin
    for key, entry in entries.items():
        try:
            dtype, shape, (start, stop) = _BY_NAME[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its header says nothing readable of '{key}'") from error
        if not whole or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its header contradicts itself about '{key}'")
        end = max(end, begin + stop)
    if size != end:
        raise ValueError(f"it has {size} bytes where its header names {end}")
    return entries, begin


def _read(file: FileIO, begin: int, key: str, entry: Mapping[str, Any]) -> Tensor:
    tensor = torch.empty(entry["shape"], dtype=_BY_NAME[entry["dtype"]])
    if tensor.numel() == 0:
        return tensor
    target = raw(tensor)
    file.seek(begin + entry["data_offsets"][0])
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise ValueError(f"it ends within '{key}'")
        done += count
    return tensor
