"""Fisher merging: a mean weighted, entry by entry, by how much each client's data determine it.

Matena, Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832, equation 4 (diagonal
Fisher). Published code: mmatena/model_merging.

    theta_j = sum_k c_k F_kj theta_kj / sum_k c_k F_kj

F_k is normalised per client, then floored for all clients at one small value, so that entries of which no client's data
say anything get the weighted mean. c_k are the clients' weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.blocks import Place
from pfl_plugins.fisher.config import FisherOptions
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Entries, Outcome
from pfl_plugins.merging.rules import Bound, Rule, per_adapter

STATISTIC = "fisher"


def fisher_mean(stack: Tensor, information: Tensor, weights: Sequence[float], floor: float = 0.0) -> Tensor:
    """Equation 4 on a stack (K, ...) with Fisher information of the same shape, floored at `floor`.

    >>> fisher_mean(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]), [0.5, 0.5])
    tensor([1.5000, 2.0000])
    """
    shares = information.clamp_min(floor) * per_adapter(weights, stack)
    total = shares.sum(dim=0)
    nobody = total <= 0
    plain = per_adapter(weights, stack) / sum(weights)
    shares = torch.where(nobody, plain, shares / torch.where(nobody, 1.0, total))
    return (shares * stack).sum(dim=0)


class Fisher(Rule):
    """Fisher merging on a field; reads the statistic of every operand."""

    def __init__(self, options: FisherOptions) -> None:
        self.options = options

    def refused(self, space: str) -> str | None:
        if space == "knots":
            return (
                "the basis is known only once all have sent, and diagonal information cannot be turned into another "
                "basis; choose `ab`, `delta` or `weight`"
            )
        return None

    def statistics(self, space: str) -> tuple[str, ...]:
        return (f"{STATISTIC}/A", f"{STATISTIC}/B") if space == "ab" else (f"{STATISTIC}/W",)

    def bind(self, field: Field) -> Bound:
        inputs, options = field.inputs, self.options
        norms, mean = self._survey(field)

        def outcome(operand: Operand, _: int) -> Outcome:
            own = [information(inputs, k, operand) for k in range(len(inputs))]
            sizes = [float(one.double().norm()) for one in own] if options.normalize == "param" else norms
            floor = options.floor * (_mean(own, sizes) if options.normalize == "param" else mean)

            def entries(block: Tensor, place: Place) -> Tensor:
                known = torch.stack([one[place].to(block) / size for one, size in zip(own, _safe(sizes), strict=True)])
                return fisher_mean(block, known, inputs.weights, floor)

            return Entries(operand, entries)

        return outcome

    def _survey(self, field: Field) -> tuple[list[float], float]:
        """Each client's norm (1 when it is not divided by), and the mean over clients and entries after division."""
        inputs = field.inputs
        squares, sums, entries = [0.0] * len(inputs), [0.0] * len(inputs), 0
        for operand in field:
            entries += operand.numel
            for k in range(len(inputs)):
                own = information(inputs, k, operand).double()
                squares[k] += float(own.square().sum())
                sums[k] += float(own.sum())
        norms = [math.sqrt(value) for value in squares] if self.options.normalize == "model" else [1.0] * len(inputs)
        scaled = [total / size for total, size in zip(sums, _safe(norms), strict=True)]
        return norms, sum(scaled) / (len(inputs) * entries)


def information(inputs: Inputs, k: int, operand: Operand) -> Tensor:
    """F_k of an operand, not negative, finite, in its shape."""
    assert inputs.statistic is not None
    found = inputs.statistic(f"{STATISTIC}/{operand.part or 'W'}", k, operand.module)
    if tuple(found.shape) != operand.shape or not bool((found >= 0).all()) or not bool(found.isfinite().all()):
        raise UserError(
            f"The Fisher information of '{inputs.names[k]}' at '{operand.name}' must be finite, not negative, and of "
            f"shape {operand.shape}; its shape is {tuple(found.shape)}."
        )
    return found


def _safe(sizes: Sequence[float]) -> list[float]:
    return [size if size > 0 else 1.0 for size in sizes]


def _mean(own: Sequence[Tensor], sizes: Sequence[float]) -> float:
    return sum(float(one.double().mean()) / size for one, size in zip(own, _safe(sizes), strict=True)) / len(own)
