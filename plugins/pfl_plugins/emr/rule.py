"""EMR-Merging: one unified vector, and for every client a mask and a rescaler.

Huang, Ye, Chen, He, Zhang, Tang, "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024, arXiv
2405.17461, section 3.2. Published code: harveyhuang18/EMR_Merging.

    1. elect     g = sign(sum_k T_k),   T_uni_j = g_j max { |T_kj| : sign(T_kj) = g_j }, 0 for the empty set
    2. mask      M_k = [ T_k g > 0 ]
    3. rescale   l_k = sum |T_k| / sum |M_k T_uni|
    4.           client k uses l_k (M_k T_uni)

Every client gets a result of its own. In the space `ab` the factors A and B are two vectors with a rescaler each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfl_platform.lowrank.blocks import Place
from pfl_plugins.emr.config import EmrOptions
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Entries, Outcome
from pfl_plugins.merging.rules import Bound, Rule, per_adapter


def elect(stack: Tensor, weights: Sequence[float]) -> Tensor:
    """T_uni of a stack (K, ...). A sum that cancels exactly elects +1. Weights enter the sum.

    >>> elect(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -2.0]]), [0.5, 0.5])
    tensor([ 3., -2.,  2.])
    """
    relative = per_adapter([weight / max(weights) for weight in weights], stack)
    positive = (stack * relative).sum(dim=0) >= 0
    return torch.where(positive, stack.amax(dim=0).clamp_min(0), stack.amin(dim=0).clamp_max(0))


def masked(own: Tensor, unified: Tensor) -> Tensor:
    """`M_k T_uni`: the unified vector where a client's own entries have its sign, else 0."""
    return own.sign().mul_(unified.sign()).clamp_min_(0).mul_(unified)


@dataclass
class _Sizes:
    """Numerators and denominators of the rescalers, one per client."""

    own: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def add(self, own: Sequence[float], kept: Sequence[float], share: float) -> None:
        self.own = [a + share * b for a, b in zip(self.own or [0.0] * len(own), own, strict=True)]
        self.kept = [a + share * b for a, b in zip(self.kept or [0.0] * len(kept), kept, strict=True)]

    def rescaler(self, k: int) -> float:
        """l_k; 1 where nothing of the unified vector is left to rescale."""
        return self.own[k] / self.kept[k] if self.kept[k] > 0 else 1.0


_HOLD = 2**23
"""Entries of a unified matrix that is kept for all clients of a module, instead of made again for each."""


class Emr(Rule):
    """EMR on a field: one walk for the rescalers, then each client's own entries."""

    def __init__(self, options: EmrOptions) -> None:
        self.options = options

    @property
    def personal(self) -> bool:
        return True

    def refused(self, space: str) -> str | None:
        if space == "knots":
            return (
                "masks belong to the entries of a client's own update, and the basis is another in every round; choose "
                "`delta` or `ab`"
            )
        return None

    def bind(self, field: Field) -> Bound:
        weights = field.inputs.weights
        sizes: dict[str, _Sizes] = {}
        for operand in field:
            own, kept = _sums(operand, weights)
            share = 1.0 / operand.numel if self.options.rescaler == "tensor_mean" else 1.0
            sizes.setdefault(operand.part, _Sizes()).add(own, kept, share)

        held: dict[str, Tensor] = {}

        def outcome(operand: Operand, turn: int) -> Outcome:
            rescaler = sizes[operand.part].rescaler(turn)
            if operand.numel > _HOLD:

                def entries(block: Tensor, _place: Place) -> Tensor:
                    return rescaler * masked(block[turn], elect(block, weights))

                return Entries(operand, entries)
            if operand.name not in held:  # clients are asked for one after another, module by module
                if not any(name.startswith(f"{operand.module}/") for name in held):
                    held.clear()
                held[operand.name] = operand.dense(lambda block, _: elect(block, weights))
            unified = held[operand.name]

            def own(block: Tensor, place: Place) -> Tensor:
                return rescaler * masked(block[0], unified[place])

            return Entries(replace(operand, deltas=(operand.deltas[turn],)), own)

        return outcome


def _sums(operand: Operand, weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """`sum |T_k|` and `sum |M_k T_uni|` of one operand, per client."""
    own = torch.zeros(len(operand), dtype=torch.float64)
    kept = torch.zeros(len(operand), dtype=torch.float64)
    for _, block in operand.blocks():
        unified = elect(block, weights)
        for k, entries in enumerate(block):
            own[k] += float(entries.abs().sum())
            kept[k] += float(masked(entries, unified).abs_().sum())
    return own.tolist(), kept.tolist()
