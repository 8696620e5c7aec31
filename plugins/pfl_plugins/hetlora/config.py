"""Options of HETLoRA."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Config(Options):
    """Rank self-pruning of a client. Its first rank is `clients.ID.adapter.r`, or the run's `adapter.r`."""

    lam: float = Field(1e-3, ge=0, description="lambda: weight of the tail's norms in the loss")
    gamma: float = Field(0.99, gt=0, le=1, description="gamma: the tail is what lies beyond this share of the rank")
    r_min: int = Field(5, ge=1, description="pruning goes no further down than this rank")
    prune: bool = Field(True, description="whether a tail whose norm shrank in a round is cut off")
    official_detached: bool = Field(
        False, description="the regulariser without gradient, as in the published re-implementation: it changes nothing"
    )


class AggregateConfig(Options):
    """How the server weighs clients."""

    weighting: Literal["norm", "uniform", "examples"] = Field(
        "norm", description="by ||B_k A_k||_F (sparsity-weighted), all the same, or by number of training examples"
    )
    per: Literal["module", "client"] = Field(
        "module", description="norm: a weight for each adapted map, or one for a client, of its whole delta"
    )
