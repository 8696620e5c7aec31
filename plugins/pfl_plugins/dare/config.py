"""Options of DARE."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig
from pfl_plugins.ties.config import TiesOptions


class DareOptions(BaseModel):
    """What DARE itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    drop_rate: float = Field(
        0.5, ge=0, lt=1, description="probability q that an entry is dropped; the others are divided by 1 - q"
    )


class Config(MergeConfig, DareOptions):
    """Options of the aggregator `dare`."""

    then: Literal["mean", "task-arithmetic"] = Field("mean", description="how what is left is merged")
    merge_coef: float | None = Field(None, gt=0, description="factor; default: 1 for the mean, 0.4 for the sum")


class DareTiesConfig(MergeConfig, DareOptions, TiesOptions):
    """Options of the aggregator `dare-ties`."""

    density: float = Field(1.0, gt=0, le=1, description="fraction of a client's entries that TIES keeps; 1: no trim")
