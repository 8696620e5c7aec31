"""Options of Potara."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Options of the objective: two adapters that are trained side by side."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fedit_rounds: int = Field(0, ge=0, description="rounds in which the federated adapter is trained and sent; 0: all")
    local_rounds: int = Field(0, ge=0, description="rounds in which the local adapter is trained; 0: all")


class MergeConfig(BaseModel):
    """Options of the personalizer: how the two are merged."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: Literal["closed_form", "fixed"] = Field(
        "closed_form", description="from the clients' gradients (Eq. 17), or `weight` for everybody"
    )
    weight: float = Field(0.5, ge=0, le=1, description="share of the federated adapter, with `weights=fixed`")
    granularity: Literal["client", "factor", "module"] = Field(
        "client", description="one weight per client, one for all A and one for all B, or one per adapted map"
    )
    samples: int = Field(30, ge=1, description="training samples whose gradients estimate the Fisher information")
    damping: float = Field(
        1e-3, gt=0, description="added to the Fisher information before it is inverted, relative to its mean"
    )
    space: Literal["factors", "delta"] = Field(
        "factors", description="A and B are merged apart (the paper), or their products, cut back to the adapter's rank"
    )

    rank: Literal["adapter", "exact"] = Field(
        "adapter",
        description="space=delta: the products are cut back to the adapter's rank, or their sum is kept (rank 2r)",
    )
    head: Literal["merged", "local", "federated"] = Field(
        "merged",
        description="the merged model's classifier, where there is one: both by the (mean) weight, or one's",
    )

    @model_validator(mode="after")
    def _a_product_has_one_weight(self) -> Self:
        if self.space == "delta" and self.granularity == "factor":
            raise ValueError(
                "space 'delta' merges products, which have one weight; choose granularity client or module"
            )
        if self.rank == "exact" and self.space != "delta":
            raise ValueError("rank 'exact' keeps the sum of products, which space 'delta' makes; set space to delta")
        return self
