"""Options of Fed-ET."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of the aggregator `fedet`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    server: Literal["distil", "group_average"] = Field(
        "distil", description="a server model learns from the clients, or each backbone's clients are averaged only"
    )
    server_model: str | None = Field(None, description="backbone of the server's model; none: the clients' largest")
    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="of clients in a backbone's average: their numbers of training examples, or 1"
    )
    samples: int = Field(80, ge=0, description="public samples that are used, the first ones; 0: all (--public-size)")
    top_k: int = Field(128, ge=0, description="tokens that a prediction names; 0: the whole vocabulary")
    diversity: float = Field(0.1, ge=0, description="lambda: strength of what the clients that disagree say; 0: none")
    temperature: float = Field(1.0, gt=0, description="T of the divergences")
    tail: Literal["rest", "drop"] = Field(
        "rest", description="tokens that a target does not name: one outcome together, or probability 0"
    )
    lr: float = Field(3e-5, gt=0, description="learning rate on the public set")
    epochs: int = Field(1, ge=1, description="passes over the public samples in a round")
    batch_size: int = Field(0, ge=0, description="public samples per step; 0: as in training")
    back: Literal["distil", "none"] = Field(
        "distil", description="how the server model's knowledge returns: distilled into each backbone's average, or not"
    )
