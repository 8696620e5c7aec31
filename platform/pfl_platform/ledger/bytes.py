"""What a message weighs: the formula, and the serialised length."""

from __future__ import annotations

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.store.layout import file_length, lengths


def payload_bytes(tensors: Tensors) -> int:
    """`sum(values x item size)`: what the papers' formulas count.

    >>> import torch
    >>> payload_bytes({"A": torch.zeros(8, 64), "B": torch.zeros(64, 8, dtype=torch.bfloat16)})   # 512 x 4 + 512 x 2
    3072
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def wire_bytes(tensors: Tensors) -> int:
    """Length of the message as a safetensors file: the payload, the keys, dtypes and shapes.

    Found from the listing of tensors, without serialising them; tensors on the `meta` device will do. It is the size of
    the file in the store.

    >>> import torch
    >>> wire_bytes({"A": torch.zeros(8, 64)})   # 8 + a header of 64 + 2048
    2120
    """
    return file_length(tensors)


def wire_by_tensor(tensors: Tensors) -> dict[str, int]:
    """`wire_bytes` by tensor, and what the file has around them under `pfl_platform.store.layout.ENVELOPE`.

    >>> import torch
    >>> sum(wire_by_tensor({"A": torch.zeros(8, 64)}).values())
    2120
    """
    return lengths(tensors)
