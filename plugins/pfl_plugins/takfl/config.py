"""Options of TAKFL."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of the aggregator `takfl`. A prototype is the clients of one backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="of clients in a prototype's average: their numbers of training examples, or 1"
    )
    samples: int = Field(80, ge=0, description="public samples that are used, the first ones; 0: all (--public-size)")
    top_k: int = Field(128, ge=0, description="tokens that a prediction names; 0: the whole vocabulary")
    temperature: float = Field(3.0, gt=0, description="T of the distillation")
    self_weight: float = Field(0.01, ge=0, description="strength of the self-regularisation; 0: none")
    self_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="backbone -> its own strength"
    )
    self_temperature: float = Field(20.0, gt=0, description="T of the self-regularisation")
    ensemble: Literal["logits", "probabilities"] = Field("logits", description="mean of a prototype's clients")
    tail: Literal["rest", "drop"] = Field(
        "rest", description="tokens that a target does not name: one outcome together, or probability 0"
    )
    lr: float = Field(3e-5, gt=0, description="learning rate of the distillation")
    epochs: int = Field(1, ge=1, description="passes over the public samples")
    batch_size: int = Field(0, ge=0, description="public samples per step; 0: as in training")
    choose: Literal["uniform", "validated"] = Field(
        "uniform",
        description="lambda: 1 / number of teachers, or the best candidate on held-out public samples",
    )
    lam: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="student's backbone -> teacher's backbone -> lambda, instead of `choose`"
    )
    validation: float = Field(0.2, gt=0, lt=1, description="share of the public samples that `validated` holds out")
    official_zero_vectors: bool = Field(
        False, description="task vectors as FedMosaic's published code takes them: a state minus itself, so zero"
    )
    official_no_reset: bool = Field(
        False, description="the student goes on from the last teacher's result, as in FedMosaic's published code"
    )
