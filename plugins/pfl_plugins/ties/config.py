"""Options of TIES."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig


class TiesOptions(BaseModel):
    """What TIES itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    density: float = Field(0.2, gt=0, le=1, description="fraction of a client's entries that survive; 1: no trim")
    reduce: Literal["mean", "sum"] = Field("mean", description="of the entries that agree with the elected sign")
    elect: Literal["total", "count"] = Field("total", description="a sign's votes: its total magnitude, or its entries")
    trim_scope: Literal["auto", "flat", "per_module", "per_tensor"] = Field(
        "auto",
        description="what is trimmed together: the whole model, a module, or a matrix; auto: the whole model (the "
        "paper), in space `ab` each A and each B",
    )


class Config(MergeConfig, TiesOptions):
    """Options of the aggregator `ties`."""

    merge_coef: float | None = Field(None, gt=0, description="lambda; default: 1")
