"""TIES-Merging: trim, elect sign, disjoint merge.

Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv
2306.01708, section 4 and algorithm 1. Published code: prateeky2806/ties-merging. T_k are the flattened task vectors:

    1. trim            T_k <- its p * P entries of largest magnitude, the others 0
    2. elect           g_j = sign(sum_k T_kj)
    3. disjoint merge  out_j = mean { T_kj : T_kj != 0, sign(T_kj) = g_j }, 0 for the empty set
    4.                 D_G = lambda * out
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pfl_platform.lowrank.blocks import Place
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Entries, Outcome
from pfl_plugins.merging.rules import Bound, Rule
from pfl_plugins.merging.thresholds import Cut, cuts, survivors
from pfl_plugins.ties.config import TiesOptions


def trim(stack: Tensor, density: float) -> Tensor:
    """Step 1 on a stack (K, ...): for each k exactly `int(density * P)` entries (at least 1) survive.

    >>> trim(torch.tensor([[3.0, -1.0, 2.0, 2.0]]), 0.5)   # of equal magnitudes the first
    tensor([[3., 0., 2., 0.]])
    """
    flat = stack.flatten(1)
    order = flat.abs().sort(dim=1, descending=True, stable=True).indices[:, : survivors(density, flat.shape[1])]
    return torch.zeros_like(flat).scatter(1, order, flat.gather(1, order)).view_as(stack)


def disjoint_merge(
    trimmed: Iterable[Tensor],
    weights: Sequence[float],
    *,
    reduce: str = "mean",
    elect: str = "total",
    averaged: bool = False,
) -> Tensor:
    """Steps 2 and 3 on K trimmed tensors of one shape (or a stack of them).

    Weights enter both steps: `g_j = sign(sum_k w_k T_kj)` (`elect` "total"; "count": of signs), and the mean is
    `sum w_k T_kj / sum w_k` over those that agree; `reduce` "sum" is `sum K w_k T_kj`, unless `averaged`. Equal weights
    give the paper's formulas. Zeros neither vote nor count. A sum that cancels exactly elects +1.

    >>> stack = torch.tensor([[4.0, 1.0], [-1.0, 0.0], [2.0, -1.0]])
    >>> disjoint_merge(stack, [1 / 3] * 3)   # (4 + 2) / 2; 1 and -1 cancel, so + is elected
    tensor([3., 1.])
    """
    plus, minus = _Side(), _Side()
    # Equal weights are taken as ones, so that what cancels does so exactly.
    relative = [weight / max(weights) for weight in weights]
    for own, weight in zip(trimmed, relative, strict=True):
        plus.add(own.clamp_min(0), weight)
        minus.add(own.clamp_max(0), weight)
    votes = plus.mass + minus.mass if elect == "total" else plus.voters - minus.voters
    positive = votes >= 0
    total = torch.where(positive, plus.mass, minus.mass)
    if reduce == "sum":
        return total / sum(relative) * (1 if averaged else len(relative))
    voters = torch.where(positive, plus.voters, minus.voters)
    return total / voters.masked_fill_(voters == 0, 1)


class _Side:
    """Entries of one sign: their weighted sum, and the weight of those that are not zero."""

    def __init__(self) -> None:
        self.mass, self.voters = torch.zeros(()), torch.zeros(())

    def add(self, entries: Tensor, weight: float) -> None:
        voters = entries.sign().abs_()
        if weight != 1:
            entries, voters = entries.mul_(weight), voters.mul_(weight)
        self.mass = entries if not self.mass.dim() else self.mass.add_(entries)
        self.voters = voters if not self.voters.dim() else self.voters.add_(voters)


class Ties(Rule):
    """TIES on a field, with exact thresholds over as many operands as the scope of the trim says."""

    def __init__(self, options: TiesOptions) -> None:
        self.options = options

    def bind(self, field: Field) -> Bound:
        options, weights = self.options, field.inputs.weights
        thresholds = Thresholds(field, options.density, options.trim_scope)

        def outcome(operand: Operand, _: int) -> Outcome:
            found = thresholds.of(operand)

            def entries(block: Tensor, place: Place) -> Tensor:
                trimmed: Iterable[Tensor] = block
                if found is not None:
                    trimmed = (cut.trim(own, operand.index, place) for own, cut in zip(block, found, strict=True))
                return disjoint_merge(
                    trimmed, weights, reduce=options.reduce, elect=options.elect, averaged=operand.averaged
                )

            return Entries(operand, entries)

        return outcome


class Thresholds:
    """The cuts that hold for an operand: found in one walk over the field (flat), or when its group is reached."""

    def __init__(self, field: Field, density: float, scope: str) -> None:
        self._field, self._density = field, density
        factors = bool(field.read(field.inputs.modules[0])[0].part)
        self._scope = scope if scope != "auto" else ("per_tensor" if factors else "flat")
        self._group: object = None
        self._cuts: list[Cut] = []

    def of(self, operand: Operand) -> list[Cut] | None:
        """None when nothing is trimmed."""
        if self._density >= 1:
            return None
        walk: Callable[[], Iterable[Operand]]
        if self._scope == "flat":
            group, walk = "", lambda: self._field
        elif self._scope == "per_module":
            group, walk = operand.module, lambda: self._field.read(operand.module)
        else:
            group, walk = operand.name, lambda: (operand,)
        if group != self._group:
            inputs = self._field.inputs
            self._cuts = cuts(walk, self._density, lambda k: inputs.rng("trim", inputs.names[k], group))
            self._group = group
        return self._cuts
