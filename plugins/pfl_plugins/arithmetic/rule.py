"""The linear rules.

    mean              D_G = sum_k w_k D_k
    task arithmetic   D_G = lambda * sum_k D_k

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089 (section 2: addition of task
vectors). The mean is that of McMahan et al., 1602.05629, applied to deltas. With lambda = 1/K and equal weights both
are the same. Weights w_k sum to 1; a sum over K clients counts client k `K w_k` times: once when the weights are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfl_platform.lowrank.blocks import Place
from pfl_platform.lowrank.deltas import weighted_sum
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Dense, Entries, Factored, Outcome
from pfl_plugins.merging.rules import Bound, Rule, per_adapter, summed


def weighted_mean(stack: Tensor, weights: Sequence[float]) -> Tensor:
    """`sum_k w_k T_k` of a stack (K, ...).

    >>> weighted_mean(Tensor([[1.0, 2.0], [3.0, 6.0]]), [0.75, 0.25])
    tensor([1.5000, 3.0000])
    """
    return (stack * per_adapter(weights, stack)).sum(dim=0)


def task_arithmetic(stack: Tensor, weights: Sequence[float], coef: float = 1.0) -> Tensor:
    """`lambda * sum_k K w_k T_k` of a stack (K, ...); the plain sum for equal weights.

    >>> task_arithmetic(Tensor([[1.0, 2.0], [3.0, 6.0]]), [0.5, 0.5], coef=0.5)
    tensor([2., 4.])
    """
    return coef * weighted_mean(stack, summed(tuple(weights), averaged=False))


class Linear(Rule):
    """The mean (`total` false) or the sum of the operands: exact in factors, in every space."""

    def __init__(self, *, total: bool, coefficient: float = 1.0) -> None:
        self.total, self._coefficient = total, coefficient

    def coefficient(self, count: int) -> float:
        return self._coefficient

    def bind(self, field: Field) -> Bound:
        weights = field.inputs.weights

        def outcome(operand: Operand, _: int) -> Outcome:
            factors = summed(weights, averaged=operand.averaged or not self.total)
            if operand.change is None and operand.matrices is not None:
                return Dense(_sum(operand.matrices, factors), operand.precision)
            if operand.change is None:
                return Factored(weighted_sum(operand.deltas, factors))

            def entries(block: Tensor, _place: Place) -> Tensor:
                return weighted_mean(block, factors)

            return Entries(operand, entries)

        return outcome


def _sum(matrices: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """`sum_k c_k T_k` in float64."""
    total = torch.zeros_like(matrices[0], dtype=torch.float64)
    for matrix, factor in zip(matrices, factors, strict=True):
        total.add_(matrix, alpha=factor)
    return total
