"""Options that all merging methods have."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

SpaceName: TypeAlias = Literal["ab", "delta", "knots", "weight"]
Weighting: TypeAlias = Literal["uniform", "num_samples"]


class MergeConfig(BaseModel):
    """Where a method works, how clients are weighted, and how the result becomes an adapter again."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    space: SpaceName = Field(
        "delta",
        description="what is merged: the factors A and B; the deltas scale B A; the deltas' coordinates in one basis; "
        "or the dense weights, without truncation",
    )
    merge_coef: float | None = Field(
        None, gt=0, description="factor of the merged delta (alpha, lambda); default: the method's own"
    )
    weighting: Weighting = Field("uniform", description="a client's weight: 1, or its number of training samples")
    tsvd_split: Literal["flexlora", "symmetric"] = Field(
        "flexlora", description="singular values of a truncated delta: all in B, or their roots in A and B"
    )
    knots_target: Literal["v", "sv"] = Field(
        "v", description="coordinates in space `knots`: V_k^T (the papers), or S V_k^T (the published code)"
    )
    knots_axis: Literal["input_concat", "output_concat"] = Field(
        "input_concat",
        description="deltas side by side share a basis of the outputs; one below the other, of the inputs",
    )
    tol: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="singular values at most this, relative to the largest, are zero; default: 1e-6 in float32, "
        "1e-10 in float64",
    )
    ab_reference: Literal["zero", "previous_global"] = Field(
        "zero", description="space `ab`: merge A and B themselves, or what they moved since the last reply"
    )
    relora: bool = Field(
        False, description="add the whole merged delta to the backbone and start every round from a fresh adapter"
    )
    drop_bad: bool = Field(
        False, description="leave out clients whose tensors hold NaN or infinity, instead of stopping"
    )
