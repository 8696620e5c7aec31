"""Options of LoRA."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.errors import UserError


class Config(BaseModel):
    """Options of LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
