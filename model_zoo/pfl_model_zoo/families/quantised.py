"""Linear maps in 4 or 8 bits, by bitsandbytes. The only module that imports it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from pfl_model_zoo.options import LoadOptions
from pfl_platform.backbones import Backbone, shape_of
from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from pfl_model_zoo.cards import ZooCard
BLOCK = 64
"""Values of NF4 that share a scale."""


def stored(form: str, rows: int, columns: int) -> float:
    """Bytes of a linear map's weight: in 4 bits a byte for each block of 64 values and four for 256 of these, in 8 bits
    four for each row.

    >>> stored("4bit", 256, 64), stored("8bit", 256, 64)
    (8452.0, 17408.0)
    """
    values = rows * columns
    return values / 2 + values / 64 + 4 * values / (64 * 256) if form == "4bit" else values + 4.0 * rows


def library(name: str) -> Any:
    """bitsandbytes. Raises `UserError` where it is not installed. name: the backbone's."""
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that it could also have
        import bitsandbytes
    except ImportError:
        raise UserError(
            f"The backbone '{name}' is to be loaded in fewer bits, for which bitsandbytes has to be installed: "
            "pip install 'pfl-platform[quantised]'."
        ) from None
    return bitsandbytes


def linears_of(backbone: Backbone) -> list[str]:
    """Paths of what is quantised: the blocks' linear maps, but for those that the model wants in full precision.
    Embeddings, head, norms, vision tower and projector are none of them."""
    kept: Sequence[str] = getattr(backbone.model, "_keep_in_fp32_modules", None) or ()
    return [
        f"{block}.{linear}"
        for block in backbone.blocks
        for linear in backbone.linears_in(block)
        if linear.rpartition(".")[2] not in kept
    ]


def quantised(card: ZooCard, backbone: Backbone, options: LoadOptions, device: torch.device) -> Backbone:
    """The backbone with its blocks' linear maps in fewer bits, on a device; on the meta device it only says so.

    4bit: NF4 in blocks of 64 whose scales are quantised again (Dettmers et al., "QLoRA", 2305.14314), computed in the
    precision of the options. 8bit: a scale for each row, with outliers apart (Dettmers et al., "LLM.int8()",
    2208.07339).
    """
    assert options.load is not None
    few = linears_of(backbone)
    if options.load == "4bit":
        _check_blocks(backbone, few)
    weigh = sum(stored(options.load, *shape_of(backbone.module(path))) for path in few)
    found = replace(backbone, digest=f"{backbone.digest} in {options.load}", few=tuple(few), few_bytes=float(weigh))
    if backbone.device.type == "meta":
        return found
    made = library(card.name)
    compute: torch.dtype = getattr(torch, options.dtype)
    for path in found.few:
        parent, _, name = path.rpartition(".")
        old = cast(nn.Linear, backbone.module(path))
        new = _four(made, old, compute) if options.load == "4bit" else _eight(made, old)
        new.to(device)  # values are quantised as they move
        setattr(backbone.module(parent), name, new.requires_grad_(False).eval())
    backbone.model.to(device)
    return found


def _check_blocks(backbone: Backbone, paths: Sequence[str]) -> None:
    """bitsandbytes 0.50 quantises blocks of a map's values one after the other, and on a CPU reads them row by row:
    where a row is not made of whole blocks, what comes out are other numbers."""
    for path in paths:
        if (size := shape_of(backbone.module(path))[1]) % BLOCK:
            raise UserError(
                f"The linear map '{path}' of backbone '{backbone.name}' reads {size} values, and in 4 bits that must "
                f"be a multiple of {BLOCK}; load it in 8."
            )


def _four(made: Any, old: nn.Linear, compute: torch.dtype) -> nn.Module:
    new: nn.Module = made.nn.Linear4bit(
        old.in_features, old.out_features, old.bias is not None, compute_dtype=compute, quant_type="nf4", device="meta"
    )
    # Else a first pass without gradient packs the weights anew, for kernels that round otherwise and need other shapes.
    new.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    new.weight = made.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
    new.bias = old.bias
    return new


def _eight(made: Any, old: nn.Linear) -> nn.Module:
    new: nn.Module = made.nn.Linear8bitLt(
        old.in_features, old.out_features, old.bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    new.weight = made.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
    new.bias = old.bias
    return new
