"""Options of FedMosaic. The paper's reading is the default; values that begin with `official` are what its published
code does instead. The README beside this file has them side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Alignment(Options):
    """Weight alignment of PQ-LoRA (4.2.2, A.5, Alg. 3 and 4), once before round 0, against the smallest backbone."""

    a: Literal["l2", "random"] = Field("l2", description="A: trained to the pivot's outputs, or left as it starts")
    b: Literal["cca", "random", "official_whitening"] = Field(
        "cca", description="B: Alg. 4, left as it starts, or the published code's full whitening map"
    )
    features: Literal["adapter", "module"] = Field(
        "adapter", description="what B's CCA looks at: outputs of B (the paper), or outputs of the adapted map itself"
    )
    tokens: Literal["spans", "answers"] = Field(
        "spans", description="matched positions: all, by character spans, or those of answers (published code)"
    )
    lam: float = Field(0.5, ge=0, description="lambda of Eq. 20")
    penalty: Literal["rows", "official_columns"] = Field(
        "rows", description="Eq. 20's regulariser on A A^T (A^T A cannot be I), or cosines between columns"
    )
    lr: float = Field(5e-5, gt=0, description="learning rate (Adam, cosine)")
    batch_size: int = Field(4, ge=1)
    epochs: int = Field(1, ge=1)
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="published code: 0.1")
    samples_b: int = Field(0, ge=0, description="public samples for CCA; 0: all (published code: 100)")
    ridge: float = Field(1e-4, ge=0, description="ridge of the covariances, relative to their mean variance")
    reorthonormalize_B: bool = Field(True, description="polar factor of B after CCA; the paper does without")
    cache: bool = Field(True, description="keep results on disk by content, for other runs")


class Config(Options):
    """Options of FedMosaic's objective."""

    gate: Literal["scalar", "input_mean"] = Field(
        "scalar", description="beta per site (Eq. 7), or the published code's gate on the mean input"
    )
    alignment: Alignment = Field(default_factory=Alignment)


class RelaConfig(Options):
    """Options of the aggregator `rela`: how clients are weighed, and the sketches that they send for it."""

    tau: float = Field(0.5, gt=0, description="softmax temperature of Eq. 4")
    include_self: bool = Field(True, description="whether a client's own adapter is in its sum; published code: false")
    weights: Literal["relevance", "uniform"] = Field("relevance", description="uniform: equal weights (ablation)")
    similarity: Literal["flat", "official_columns"] = Field(
        "flat", description="one cosine of the whole vectors, or the mean over columns"
    )
    small_model: str | None = Field(None, description="W_s; none: the smallest backbone of the federation")
    gradient_from: Literal["ws", "training"] = Field(
        "ws", description="frozen W_s, or the client's training model (ablation, Table 30)"
    )
    projection: int = Field(
        0,
        ge=0,
        description="gradient_from training: 0 compares within a backbone only; else all, after a seeded projection to "
        "this size (projections of different shapes are unrelated, so cosines across backbones are noise)",
    )
    every: int = Field(10, ge=1, description="m: batches between sketches")
    gradient_rows: int = Field(0, ge=0, description="rows of a batch in the sketch; 0: all (published code: 1)")
    jacobian: Literal["exact", "official_approx"] = Field("exact", description="RMSNorm's Jacobian, or its diagonal")
    alpha: float = Field(0.5, gt=0, le=1, description="EMA ratio of Eq. 2")
    ema: Literal["on", "off"] = Field("on", description="off: the last round's gradient alone (ablation, Table 30)")
    ema_start: Literal["copy", "zeros"] = Field("copy", description="zeros: Alg. 1, which only scales the first vector")
    mu: float = Field(
        1e-4, ge=0, description="noise scale of Eq. 3; no clipping goes with it: not differential privacy"
    )
    keep: float = Field(0.4, gt=0, le=1, description="N_s: fraction of coordinates that is sent")
    subsample: Literal["random", "official_rows"] = Field(
        "random", description="random coordinates, the same for all clients, or the first rows"
    )
    sanitize_before_ema: bool = Field(
        False, description="noise before the EMA (Alg. 1, published code) instead of after (Eq. 3)"
    )
