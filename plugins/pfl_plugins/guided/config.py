"""Options of guided clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """How the global model guides a client (section 4 of the paper)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    guide: Literal["hard", "parametric", "kd"] = Field(
        "hard", description="start from the global adapter, stay near its params, or near its outputs"
    )
    beta: float = Field(0.5, ge=0, le=1, description="strength: (1 - beta) L_SFT + beta L_REG; not used by hard")
    betas: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="client id -> its own beta, instead of `beta`"
    )
    adjust: Literal["fixed", "cosine", "sar"] = Field(
        "fixed", description="beta as it is, or times the client's similarity to the global adapter"
    )
    cosine_space: Literal["factors", "delta"] = Field(
        "factors", description="cosine of flattened A and B (the paper), or of the deltas, which no gauge changes"
    )
    sar_eps: float = Field(0.05, gt=0, lt=1, description="share of the norm that SAR's subspace may leave out")
    gauge: Literal["align", "none"] = Field(
        "align", description="parametric: turn the global factors to the client's by an orthogonal map first, or not"
    )
    temperature: float = Field(1.0, gt=0, description="T of the KL divergence")
    kd_vocab_mean: bool = Field(True, description="divide the KL by the size of the vocabulary, as the paper does")
    moments: Literal["auto", "keep", "reset"] = Field(
        "auto", description="Adam's moments between rounds; auto: reset where the params were replaced (hard)"
    )
