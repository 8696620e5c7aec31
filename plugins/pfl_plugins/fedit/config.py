"""Options of FedIT."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """FedIT's objective has no options of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AverageConfig(BaseModel):
    """Options of the aggregator `fedavg`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="a client's weight: its number of training examples, or 1"
    )
