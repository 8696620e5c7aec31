"""Options of FedSim and of its alternating sibling."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """How the shared and the personal adapter make one model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    combine: Literal["hidden_sum", "logit_sum"] = Field(
        "hidden_sum",
        description="both adapters in one pass, or a pass for each whose logits are added (FedMosaic's comparison)",
    )
    official_leak: bool = Field(
        False, description="personal adapters are averaged and overwritten as well, as in FedMosaic's published code"
    )
