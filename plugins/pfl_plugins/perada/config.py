"""Options of PerAda."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of PerAda's client."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lam: float = Field(
        1.0, ge=0, description="lambda of lambda ||v - w||^2, without 1/2 as in the published code (FedMosaic's: 0.001)"
    )
    official_leak: bool = Field(
        False, description="personal adapters are averaged and overwritten too, as in FedMosaic's published code"
    )


class ServerConfig(BaseModel):
    """Options of the aggregator `perada`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="of clients in a backbone's average: their numbers of training examples, or 1"
    )
    samples: int = Field(80, ge=0, description="public samples that are used, the first ones; 0: all (--public-size)")
    top_k: int = Field(128, ge=0, description="tokens that a prediction names; 0: the whole vocabulary")
    temperature: float = Field(1.0, gt=0, description="T of the distillation (FedMosaic's comparison: 2)")
    ensemble: Literal["logits", "probabilities"] = Field("logits", description="mean of the clients")
    teachers: Literal["all", "backbone"] = Field(
        "all", description="whose clients teach: everybody's, or those of the student's backbone"
    )
    tail: Literal["rest", "drop"] = Field(
        "rest", description="tokens that a target does not name: one outcome together, or probability 0"
    )
    lr: float = Field(1e-4, gt=0, description="learning rate of the distillation (Adam, cosine)")
    epochs: int = Field(1, ge=1, description="passes over the public samples")
    batch_size: int = Field(0, ge=0, description="public samples per step; 0: as in training")
    rounds: int = Field(30, ge=0, description="rounds with distillation, the first ones; 0: all")
    keep: Literal["best", "last"] = Field(
        "best", description="the student at its best on held-out samples, or at the end"
    )
    checks: int = Field(4, ge=1, description="how often in a distillation the student is measured for `keep: best`")
    validation: float = Field(0.2, gt=0, lt=1, description="share of the public samples that `keep: best` holds out")
