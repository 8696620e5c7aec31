"""Named tensors as bytes: their content address, and their length and form as a safetensors file.

The file form is written here, tensor by tensor, so that neither a second copy of a large state is made nor a change of
the library's internal order changes what was booked: 8 bytes with the header's length, the header as JSON padded with
spaces to a multiple of 8, the values. `reading` reads it; so does the library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.store.atomic import Chunk

DTYPES: Mapping[torch.dtype, str] = {
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""dtype -> its name in the file form."""


def dtype_name(tensor: Tensor) -> str:
    """Name of a tensor's dtype in a file; a dtype that no file can hold is a `TypeError`.

    >>> dtype_name(torch.zeros(1, dtype=torch.bfloat16))
    'BF16'
    """
    if tensor.dtype not in DTYPES:
        raise TypeError(f"a tensor of dtype {tensor.dtype} cannot be stored")
    return DTYPES[tensor.dtype]


def raw(tensor: Tensor) -> memoryview:
    """The values as bytes in row-major order; no copy when the tensor is contiguous and on the CPU."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    values: memoryview = flat.view(torch.uint8).numpy().data
    return values


def content_address(tensors: Tensors) -> str:
    """SHA-256 over keys in sorted order, each with dtype, shape and values, as 64 hexadecimal digits.

    The order of insertion, strides and shared storage do not count; dtype and shape do.

    >>> one, two = torch.ones(2), torch.zeros(3, 1)
    >>> content_address({"a": one, "b": two}) == content_address({"b": two, "a": one})
    True
    >>> content_address({"b": two}) == content_address({"b": two.T})
    False
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, dtype_name(tensor), list(tensor.shape)]).encode() + b"\n")
        digest.update(raw(tensor))
    return digest.hexdigest()


def text_address(text: str) -> str:
    """The address of a text: SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_order(tensors: Tensors) -> list[str]:
    """Keys as they lie in a file: wide items first, so that every tensor starts at a multiple of its item size."""
    return sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))


def header(tensors: Tensors) -> bytes:
    """What precedes the values in a file. Only dtypes and shapes are read, so tensors without values will do.

    >>> header({"a": torch.zeros(2, device="meta")})[8:].rstrip()
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    """
    text = _json(_entries(tensors))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(tensors: Tensors) -> dict[str, dict[str, Any]]:
    """What the header says of each tensor, in the order of the file."""
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for key in file_order(tensors):
        if key == "__metadata__":
            raise ValueError("'__metadata__' cannot be the name of a tensor")
        tensor = tensors[key]
        stop = start + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    return entries


def _json(entries: Mapping[str, Any]) -> bytes:
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()


def file_chunks(tensors: Tensors) -> Iterator[Chunk]:
    """The whole file, piece by piece: the header, then one piece per tensor."""
    yield header(tensors)
    for key in file_order(tensors):
        yield raw(tensors[key])


def file_length(tensors: Tensors) -> int:
    """Length in bytes of the file that `file_chunks` gives, without making it.

    >>> file_length({"a": torch.zeros(2)}) == sum(len(part) for part in file_chunks({"a": torch.zeros(2)}))
    True
    """
    return len(header(tensors)) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


ENVELOPE = "(envelope)"
"""What of a file belongs to no tensor: the header's length, brackets, commas and padding."""


def lengths(tensors: Tensors) -> dict[str, int]:
    """Bytes of a file by tensor, its values and its entry in the header; the rest under `ENVELOPE`. They add up to
    `file_length`.

    >>> lengths({"a": torch.zeros(2)})   # 8 of values, 52 of header; 8 + 2 + 2 around it
    {'a': 60, '(envelope)': 12}
    """
    found = {
        key: entry["data_offsets"][1] - entry["data_offsets"][0] + len(_json({key: entry})) - 2
        for key, entry in _entries(tensors).items()
    }
    return {**found, ENVELOPE: file_length(tensors) - sum(found.values())}
