"""Options of Fisher merging per client."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of the personalizer `fishermerge`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    space: Literal["lora", "full"] = Field(
        "lora", description="A and B, or the dense weights of the adapted maps (small backbones only)"
    )
    weight: float = Field(0.5, ge=0, le=1, description="factor lambda of the federated model; the local's is the rest")
    samples: int = Field(30, ge=1, description="training samples whose gradients estimate the Fisher information")
    normalize: Literal["model", "none"] = Field(
        "model", description="divide each model's Fisher information by its norm over all merged params"
    )
    floor: float = Field(1e-6, gt=0, description="least information, relative to the mean over both models")
    head: Literal["merged", "local", "federated"] = Field(
        "merged", description="the merged model's classifier, where there is one: of both by `weight`, or one's"
    )
    largest: int = Field(
        200_000_000, ge=1, description="params of a backbone up to which space=full is allowed; it holds dense copies"
    )
