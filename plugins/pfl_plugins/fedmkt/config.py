"""Options of FedMKT. What both sides do alike is set at the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of the objective `fedmkt`: what is exchanged, and how clients and server learn from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    samples: int = Field(80, ge=0, description="public samples that are used, the first ones; 0: all (--public-size)")
    top_k: int = Field(128, ge=0, description="tokens that a prediction names; 0: all, sent without their numbers")
    lm_weight: float = Field(
        0.9, ge=0, le=1, description="lambda: lambda LM + (1 - lambda) CE to the selected predictions"
    )
    official_no_lm: bool = Field(False, description="no LM term, as in FedMosaic's published code")
    tail: Literal["rest", "drop"] = Field(
        "rest", description="tokens that a prediction does not name: one outcome together, or probability 0"
    )
    lr: float = Field(3e-5, gt=0, description="learning rate on the public set")
    epochs: int = Field(1, ge=1, description="passes over the public samples in a round")
    batch_size: int = Field(0, ge=0, description="public samples per step; 0: as in training")
    server_model: str | None = Field(
        None, description="backbone of the server's one model; none: one server model for each backbone of the clients"
    )


class ServerConfig(BaseModel):
    """The aggregator `fedmkt` has no options of its own; it reads those of the objective."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
