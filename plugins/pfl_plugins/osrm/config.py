"""Options of OSRM."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """How a client's A is chosen before training (section 4 of the paper), and what training does with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    variant: Literal["mean", "full"] = Field(
        "mean", description="rows of features that a client sends per input: their mean (Eq. 4), or one per sample"
    )
    samples: int = Field(100, ge=1, description="k, samples per client; all that it has, if these are fewer")
    split: Literal["train", "validation"] = Field("train", description="where the samples come from")
    noise: float = Field(0.0, ge=0, description="Gaussian noise on what is sent, relative to the rows' RMS")
    tol: float = Field(1e-6, gt=0, lt=1, description="relative size of a singular value of H that counts as zero")
    freeze_a: bool = Field(False, description="train B alone")
    start: Literal["own", "global"] = Field(
        "own", description="what later rounds start from: the client's own adapter, or the server's reply"
    )
