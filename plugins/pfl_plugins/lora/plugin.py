"""LoRA in every linear map of every decoder block: delta = scale * B A.

Citation: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, 2106.09685. Injection and
saving by peft. A is Kaiming-uniform, B is zero, as in the paper's published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.errors import UserError
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType


class Config(BaseModel):
    """Options of LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1, description="rank r; the same for all clients whose params are combined")
    scale: float = Field(2.0, gt=0, description="alpha / r, the factor of B A")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input, in training")
    targets: tuple[str, ...] = Field((), description="linear maps of a block to adapt, by ending; empty: all")


def chosen(linears: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The block's linear maps whose name ends in one of `targets` (all when there is none)."""
    if not targets:
        return list(linears)
    for target in targets:
        if not any(name.endswith(target) for name in linears):
            raise UserError(f"No linear map of a block ends in '{target}'; there are {', '.join(linears)}.")
    return [name for name in linears if any(name.endswith(target) for target in targets)]


@hookimpl
def pfl_make_adapter(name: str, options: Mapping[str, Any]) -> AdapterType | None:
    if name != "lora":
        return None
    config = Config(**options)
    from pfl_plugins.lora.adapter import Lora

    return Lora(config)
