"""Options of EMR."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig


class EmrOptions(BaseModel):
    """What EMR itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rescaler: Literal["global", "tensor_mean"] = Field(
        "global",
        description="ratio of sums over all entries together (the paper), or of sums of each matrix's mean (the code)",
    )


class Config(MergeConfig, EmrOptions):
    """Options of the aggregator `emr`."""
