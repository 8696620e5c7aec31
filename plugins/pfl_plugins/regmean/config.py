"""Options of RegMean."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.merging.config import MergeConfig


class RegMeanOptions(BaseModel):
    """What RegMean itself can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    a: float = Field(
        0.9,
        ge=0,
        le=1,
        description="factor of the Gram matrices' off-diagonal entries; 0: diagonal RegMean, 1: as they are",
    )
    ridge: float = Field(
        1e-6, ge=0, description="added to every Gram's diagonal, relative to its mean over the clients"
    )


class Config(MergeConfig, RegMeanOptions):
    """Options of the aggregator `regmean`."""

    diagonal: bool = Field(False, description="send only the diagonals of the Gram matrices; the same as a = 0")
    per_token: bool = Field(
        True,
        description="divide a Gram matrix by its number of tokens (the code), or let long data weigh more (the paper)",
    )
    samples: int = Field(
        1000, ge=1, description="validation samples (training samples where there are none) per client"
    )
