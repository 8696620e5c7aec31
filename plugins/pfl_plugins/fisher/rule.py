"""Fisher merging: a mean weighted, entry by entry, by how much each client's data determine it.

Matena, Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832, equation 4 (diagonal
Fisher). Published code: mmatena/model_merging.

    theta_j = sum_k c_k F_kj theta_kj / sum_k c_k F_kj

F_k is normalised per client, then floored for all clients at one small value, so that entries of which no client's data
say anything get the weighted mean. c_k are the clients' weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs
from pfl_plugins.arithmetic.rule import weighted_mean
from pfl_plugins.fisher.config import FisherOptions
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Dense, Outcome
from pfl_plugins.merging.rules import Bound, Rule, per_adapter

STATISTIC = "fisher"
_ROWS = 128
"""Rows of a client's information that are in float64 at a time."""


def fisher_mean(stack: Tensor, information: Tensor, weights: Sequence[float], floor: float = 0.0) -> Tensor:
    """Equation 4 on a stack (K, ...) with Fisher information of the same shape, floored at `floor`.

    >>> fisher_mean(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]), [0.5, 0.5])
    tensor([1.5000, 2.0000])
    """
    top, bottom = torch.zeros_like(stack[0]), torch.zeros_like(stack[0])
    for values, known, weight in zip(stack, information, weights, strict=True):
        _add(top, bottom, values, known.clamp_min(floor).mul_(weight))
    return _ratio(top, bottom, lambda: (stack * per_adapter(weights, stack)).sum(dim=0) / sum(weights))


def _add(top: Tensor, bottom: Tensor, values: Tensor, share: Tensor) -> None:
    """One client's `c_k F_k theta_k` and `c_k F_k`."""
    top.addcmul_(share, values)
    bottom.add_(share)


def _ratio(top: Tensor, bottom: Tensor, plain: Callable[[], Tensor]) -> Tensor:
    """`top / bottom`, in the memory of `top`; the weighted mean where nobody's data say anything."""
    nobody = bottom <= 0
    if not bool(nobody.any()):
        return top.div_(bottom)
    return torch.where(nobody, plain(), top.div_(bottom.masked_fill_(nobody, 1)))


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
            sizes, average = norms, mean
            if options.normalize == "param":
                (sizes, sums), count = self._measured(inputs, operand), operand.numel * len(inputs)
                average = sum(total / size for total, size in zip(sums, _safe(sizes), strict=True)) / count
            return Dense(self._merged(inputs, operand, _safe(sizes), options.floor * average), operand.precision)

        return outcome

    def _merged(self, inputs: Inputs, operand: Operand, sizes: Sequence[float], floor: float) -> Tensor:
        """The result of an operand, dense. Client by client: information is dense, and one client's is enough."""
        like = operand.deltas[0].up
        top, bottom = (torch.zeros(operand.shape, dtype=operand.dtype, device=like.device) for _ in range(2))
        for k, weight in enumerate(inputs.weights):
            known = information(inputs, k, operand)
            for place, block in operand.only(k).blocks():
                share = (known[place].to(block) / sizes[k]).clamp_min_(floor).mul_(weight)
                _add(top[place], bottom[place], block[0], share)
            del known  # before the next one is read
        weights = inputs.weights
        return _ratio(top, bottom, lambda: operand.dense(lambda block, _: weighted_mean(block, weights)))

    def _survey(self, field: Field) -> tuple[list[float], float]:
        """Each client's norm (1 when it is not divided by), and the mean over clients and entries after division."""
        count = len(field.inputs)
        squares, sums, entries = [0.0] * count, [0.0] * count, 0
        if self.options.normalize != "param":
            for operand in field:
                entries += operand.numel
                sizes, totals = self._measured(field.inputs, operand)
                squares = [square + size**2 for square, size in zip(squares, sizes, strict=True)]
                sums = [one + other for one, other in zip(sums, totals, strict=True)]
        norms = [math.sqrt(value) for value in squares] if self.options.normalize == "model" else [1.0] * count
        scaled = [total / size for total, size in zip(sums, _safe(norms), strict=True)]
        return norms, sum(scaled) / max(1, count * entries)

    def _measured(self, inputs: Inputs, operand: Operand) -> tuple[list[float], list[float]]:
        """Each client's norm and sum over an operand's entries."""
        norms, sums = [], []
        for k in range(len(inputs)):
            rows = torch.split(information(inputs, k, operand), _ROWS)
            flat = [part.flatten().double() for part in rows]
            norms.append(math.sqrt(sum(float(part.dot(part)) for part in flat)))
            sums.append(sum(float(part.sum()) for part in flat))
            del rows, flat  # before the next one is read
        return norms, sums


def information(inputs: Inputs, k: int, operand: Operand) -> Tensor:
    """F_k of an operand, not negative, finite, in its shape."""
    assert inputs.statistic is not None
    found = inputs.statistic(f"{STATISTIC}/{operand.part or 'W'}", k, operand.module)
    if tuple(found.shape) != operand.shape or not _proper(found):
        raise UserError(
            f"The Fisher information of '{inputs.names[k]}' at '{operand.name}' must be finite, not negative, and of "
            f"shape {operand.shape}; its shape is {tuple(found.shape)}."
        )
    return found


def _safe(sizes: Sequence[float]) -> list[float]:
    return [size if size > 0 else 1.0 for size in sizes]


def _proper(found: Tensor) -> bool:
    """Whether all entries are finite and not negative, in one pass; NaN is the extreme of whatever it is in."""
    if not found.numel():
        return True
    least, most = torch.aminmax(found)
    return bool(least >= 0) and bool(most.isfinite())
