"""Options of Fisher merging."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig, SpaceName


class FisherOptions(BaseModel):
    """What Fisher merging itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    normalize: Literal["model", "param", "none"] = Field(
        "model", description="divide a client's Fisher information by its norm over the model, or over each matrix"
    )
    floor: float = Field(
        1e-6, ge=0, description="least value, relative to the mean over all clients and entries; after normalisation"
    )


class Config(MergeConfig, FisherOptions):
    """Options of the aggregator `fisher`."""

    space: SpaceName = Field(
        "ab",
        description="`ab`: information of A and of B; `delta`, `weight`: of dense weights, with truncation and without",
    )
    samples: int = Field(
        1000, ge=1, description="validation samples (training samples where there are none) per client"
    )
