"""Options of Iso-C."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig


class IsoOptions(BaseModel):
    """What Iso-C itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    iso_average: Literal["rank", "min_dim"] = Field(
        "rank",
        description="divide the sum of the singular values by the numerical rank, or by the matrix's smaller side as "
        "the published code does; directions without a singular value get none in either case",
    )
    iso_value: Literal["all", "kept"] = Field(
        "all", description="where truncation follows: the mean over all directions, or over those that are kept"
    )


class Config(MergeConfig, IsoOptions):
    """Options of the aggregator `iso-c`."""

    merge_coef: float | None = Field(None, gt=0, description="alpha; default: 1 / K, the size of a mean")
