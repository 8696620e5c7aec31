"""The equations of guided clients, on tensors and deltas. Numbers are those of section 4 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.lowrank.gauge import align
from pfl_platform.lowrank.similarity import cosine, subspace_alignment


def distance(params: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> Tensor:
    """`L_REG = sum over modules ||A_k - A_G||^2 + ||B_k - B_G||^2`, a sum of squares; scalar, differentiable in params.

    >>> distance({"a": torch.tensor([3.0, 1.0])}, {"a": torch.tensor([1.0, 0.0])})
    tensor(5.)
    """
    parts = [(params[key] - anchor.to(params[key])).square().sum() for key, anchor in sorted(anchors.items())]
    return torch.stack(parts).sum()


def divergence(own: Tensor, teacher: Tensor, temperature: float, *, vocab_mean: bool) -> Tensor:
    """`T^2 / |V| * KL(p_k || p_G)` per position, shape (positions,), float32; p = softmax(logits / T).

    own, teacher: logits (positions, |V|). The client's distribution is the first argument of the KL. Without
    `vocab_mean` the factor 1 / |V| is left out.

    >>> own, teacher = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(float(divergence(own, teacher, 1.0, vocab_mean=False)), 4)   # 0.75 ln 1.5 + 0.25 ln 0.5
    0.1308
    """
    log_own = functional.log_softmax(own.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    divergences = (log_own.exp() * (log_own - log_teacher)).sum(dim=-1)
    return divergences * (temperature**2 / (own.shape[-1] if vocab_mean else 1))


def similarity(
    own: Sequence[Delta],
    merged: Sequence[Delta],
    measure: Literal["cosine", "sar"],
    *,
    space: Literal["factors", "delta"] = "factors",
    eps: float = 0.05,
) -> float:
    """How near a client's adapter is to the global one, module by module in the same order: one cosine of the whole
    adapters, or the mean over modules of the subspace alignment ratio."""
    if measure == "cosine":
        return cosine(own, merged, space)
    ratios = [subspace_alignment(one, svd(other), eps) for one, other in zip(own, merged, strict=True)]
    return sum(ratios) / len(ratios)


def adjusted(beta: float, alike: float) -> float:
    """`beta_k = clip(beta * max(sim_k, 0), 0, 1)`. The paper gives no formula; this is our reading.

    >>> adjusted(0.5, 0.8), adjusted(0.5, -0.2)
    (0.4, 0.0)
    """
    return min(1.0, max(0.0, beta * max(alike, 0.0)))


def gauged(merged: Mapping[str, Delta], own: Mapping[str, Delta]) -> dict[str, Delta]:
    """The global factors in each module's gauge that is nearest to the client's own: same deltas, turned factors.
    Where a rank differs there is no such map, and the module stays as it is."""
    return {name: align(delta, own[name]) if delta.rank == own[name].rank else delta for name, delta in merged.items()}
