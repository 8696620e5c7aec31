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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pfl_platform.lowrank.blocks import Place
from pfl_plugins.emr.config import EmrOptions
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Entries, Outcome
from pfl_plugins.merging.rules import Bound, Rule, Sharing, per_adapter


def elect(stack: Tensor, weights: Sequence[float]) -> Tensor:
    """T_uni of a stack (K, ...). A sum that cancels exactly elects +1. Weights enter the sum.

    >>> elect(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -2.0]]), [0.5, 0.5])
    tensor([ 3., -2.,  2.])
    """
    weighted = stack
    if min(weights) < max(weights):
        weighted = stack * per_adapter([weight / max(weights) for weight in weights], stack)
    positive = weighted.sum(dim=0) >= 0
    return torch.where(positive, stack.amax(dim=0).clamp_min(0), stack.amin(dim=0).clamp_max(0))


def masked(own: Tensor, unified: Tensor) -> Tensor:
    """`M_k T_uni`: the unified vector where a client's own entries have its sign, else 0."""
    return _agreeing(own, unified).copysign_(unified)


def _agreeing(own: Tensor, unified: Tensor) -> Tensor:
    """`|M_k T_uni|`."""
    return own.sign().mul_(unified).clamp_min_(0)


class _Sizes:
    """Numerators and denominators of the rescalers, one per client; and how much of each client's masked vector is
    whose entries, (K, K)."""

    def __init__(self, count: int) -> None:
        self.own = torch.zeros(count, dtype=torch.float64)
        self.kept = torch.zeros(count, dtype=torch.float64)
        self.whose = torch.zeros(count, count, dtype=torch.float64)

    def add(self, other: _Sizes, share: float) -> None:
        self.own += share * other.own
        self.kept += share * other.kept
        self.whose += other.whose

    def rescaler(self, k: int) -> float:
        """l_k; 1 where nothing of the unified vector is left to rescale."""
        return float(self.own[k] / self.kept[k]) if self.kept[k] > 0 else 1.0


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
            found = _sums(operand, weights)
            share = 1.0 / operand.numel if self.options.rescaler == "tensor_mean" else 1.0
            sizes.setdefault(operand.part, _Sizes(len(operand))).add(found, share)
        return _Elected(weights, sizes)


class _Elected(Sharing):
    """The rule once the rescalers are known."""

    def __init__(self, weights: Sequence[float], sizes: Mapping[str, _Sizes]) -> None:
        self._weights, self._sizes = weights, sizes
        self._held: dict[str, Tensor] = {}
        self._memory = torch.empty(0, dtype=torch.float64)

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Of a client's result, by the sum of absolute entries, what was elected from whom: the entry is of whoever has
        the largest of its sign. All its own where nothing is left."""
        rows = []
        count = len(self._weights)
        for k in range(count):
            row = sum((sizes.rescaler(k) * sizes.whose[k] for sizes in self._sizes.values()), torch.zeros(count))
            total = float(row.sum())
            rows.append(tuple(float(value) / total if total > 0 else float(j == k) for j, value in enumerate(row)))
        return tuple(rows)

    def __call__(self, operand: Operand, turn: int) -> Outcome:
        rescaler = self._sizes[operand.part].rescaler(turn)
        if operand.numel > _HOLD:

            def entries(block: Tensor, _place: Place) -> Tensor:
                unified = elect(block, self._weights)
                return masked(block[turn], unified).mul_(rescaler)

            return Entries(operand, entries)
        held = self._held
        if operand.name not in held:  # clients are asked for one after another, module by module
            if not any(name.startswith(f"{operand.module}/") for name in held):
                held.clear()
            held[operand.name] = operand.dense(lambda block, _: elect(block, self._weights))
        unified = held[operand.name]

        def own(block: Tensor, place: Place) -> Tensor:
            return masked(block[0], unified[place]).mul_(rescaler)

        if self._memory.numel() < operand.numel:
            self._memory = self._memory.new_empty(operand.numel, device=unified.device)
        return Entries(operand.only(turn), own, self._memory)


def _sums(operand: Operand, weights: Sequence[float]) -> _Sizes:
    """`sum |T_k|`, `sum |M_k T_uni|`, and of the latter what is whose, of one operand."""
    found = _Sizes(len(operand))
    for _, block in operand.blocks():
        unified = elect(block, weights)
        kept = _agreeing(block, unified).flatten(1)
        holders = (block == unified).flatten(1).to(block.dtype)
        found.own += block.abs_().flatten(1).sum(dim=1).double().cpu()
        found.kept += kept.sum(dim=1).double().cpu()
        found.whose += (kept @ holders.T).double().cpu()
    return found
