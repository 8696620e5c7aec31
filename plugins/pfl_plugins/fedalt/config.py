"""Options of FedALT."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Config(Options):
    """The mixer of a client."""

    mixer: Literal["token", "fixed"] = Field(
        "token", description="a trained softmax for each token and site, or one half each (ablation)"
    )
    mixer_start: Literal["zeros", "official_uniform"] = Field(
        "zeros", description="the mixer's first weights: zeros, which mix half and half, or U(-1, 1) / sqrt(d_in)"
    )


class RestConfig(Options):
    """Options of the aggregator `fedalt`."""

    include_self: bool = Field(
        False,
        description="whether a client's own adapter is in its rest of the world (ablation; it is not in the paper)",
    )
