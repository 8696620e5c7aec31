"""RegMean: the linear map that comes closest to every client's own, on that client's inputs.

Jin, Ren, Preotiuc-Pietro, Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023, arXiv
2212.09849, equation 2 and section 3.3. Published code: bloomberg/dataless-model-merging.

    W = (sum_k W_k G'_k) (sum_k G'_k)^-1,     G_k = X_k^T X_k,     G'_k = a G_k + (1 - a) diag(G_k)

X_k (tokens, d_in) are the layer's inputs at client k. The map is affine-equivariant: RegMean({W0 + D_k}) = W0 +
RegMean({D_k}), so deltas and Gram matrices are all it takes, and the result keeps to the clients' factors:

    D_G = [s_1 B_1, ..., s_K B_K] [A_1 G'_1; ...; A_K G'_K] (sum_k G'_k)^-1

A ridge goes into every G'_k, not only into their sum: then it cancels for one client or for equal ones, and directions
that no input has get the weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.deltas import Delta, double, mean, shared_precision
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Factored, Outcome
from pfl_plugins.merging.rules import Bound, Rule
from pfl_plugins.regmean.config import RegMeanOptions

STATISTIC = "gram"
BLOCK = 64
"""Rows of a Gram matrix that are in float64 at a time."""


def shrunk_into(total: Tensor | None, rows: Tensor, gram: Tensor, a: float, weight: float = 1.0) -> Tensor:
    """`rows @ G'` in float64, for `G' = a G + (1 - a) diag(G)`; adds `weight * G'` to the lower triangle of `total`.

    rows (n, d) and total (d, d) are float64, gram (d, d) is of any precision. Its lower triangle alone is read, so that
    products and sums mean the same symmetric matrix, in blocks of rows: a whole copy in float64 is never there.

    >>> gram, rows = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.eye(2).double()
    >>> shrunk_into(None, rows, gram, 0.5)
    tensor([[2.0000, 0.5000],
            [0.5000, 4.0000]], dtype=torch.float64)
    """
    diagonal = double(gram.diagonal())
    found = (1.0 - a) * (rows * diagonal)
    if total is not None:
        total.diagonal().add_(diagonal, alpha=weight * (1.0 - a))
    for start in range(0, len(gram), BLOCK):
        stop = min(start + BLOCK, len(gram))
        left = double(gram[start:stop, :stop])
        before, corner = left[:, :start], left[:, start:].tril()
        corner = corner + corner.tril(-1).T
        found[:, start:stop].add_(rows[:, :start] @ before.T + rows[:, start:stop] @ corner, alpha=a)
        found[:, :start].add_(rows[:, start:stop] @ before, alpha=a)
        if total is not None:
            total[start:stop, :start].add_(before, alpha=weight * a)
            total[start:stop, start:stop].add_(corner, alpha=weight * a)
    return found


def regmean(stack: Tensor, grams: Tensor, weights: Sequence[float], *, a: float = 0.9, ridge: float = 1e-6) -> Tensor:
    """RegMean of dense maps (K, d_out, d_in) with Gram matrices (K, d_in, d_in), or their diagonals (K, d_in)."""
    deltas = [Delta.from_dense(one) for one in stack]
    return solve(deltas, lambda k: grams[k], weights, RegMeanOptions(a=a, ridge=ridge)).dense()


def solve(
    deltas: Sequence[Delta], gram: Callable[[int], Tensor], weights: Sequence[float], options: RegMeanOptions
) -> Delta:
    """The merged delta, of rank sum r_k. gram(k) is read once, one at a time, since K of them may be too many."""
    total: Tensor | None = None
    level = 0.0
    downs = []
    for k, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        found, down = gram(k), double(delta.down)
        diagonal = double(found if found.dim() == 1 else found.diagonal())
        if total is None:
            total = diagonal.new_zeros(found.shape)
        if found.dim() == 1:  # G' of a diagonal is itself
            total.add_(diagonal, alpha=weight)
            downs.append(down * diagonal)
        else:
            downs.append(shrunk_into(total, down, found, options.a, weight))
        level += weight * float(diagonal.mean())
    assert total is not None
    own = total if total.dim() == 1 else total.diagonal()
    if not bool((own > 0).any()):
        return mean(deltas, weights)
    ridge = options.ridge * level / sum(weights)
    own.add_(ridge * sum(weights))
    rows = [
        weight * (down + ridge * double(one.down)) for weight, down, one in zip(weights, downs, deltas, strict=True)
    ]
    ups = [one.scale * double(one.up) for one in deltas]
    return Delta(torch.cat(ups, dim=1), _divided(torch.cat(rows), total), precision=shared_precision(deltas))


def _divided(rows: Tensor, total: Tensor) -> Tensor:
    """`rows @ total^-1` for a diagonal, or for a symmetric positive definite total that has its lower triangle only.
    Raises `UserError` when singular."""
    if total.dim() == 1:
        if not bool((total > 0).all()):
            raise UserError("An input feature is zero at every client, so RegMean has no solution; set ridge above 0.")
        return rows / total
    factor, failed = torch.linalg.cholesky_ex(total)
    if int(failed):
        raise UserError("The sum of the Gram matrices is singular, so RegMean has no solution; set a larger ridge.")
    return torch.cholesky_solve(rows.T, factor).T


def finite(tensor: Tensor) -> bool:
    """Whether all values are; a sum tells so in one pass, unless it overflows."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


class RegMean(Rule):
    """RegMean on a field. In the space `ab` A is merged by G_k, and B by `A_k G_k A_k^T`, the Gram of its input."""

    def __init__(self, options: RegMeanOptions) -> None:
        self.options = options

    def refused(self, space: str) -> str | None:
        if space == "knots":
            return "it weighs inputs, which a basis of the outputs leaves alone; choose `delta`, which is the same"
        return None

    def statistics(self, space: str) -> tuple[str, ...]:
        return (STATISTIC,)

    def bind(self, field: Field) -> Bound:
        inputs = field.inputs

        def outcome(operand: Operand, _: int) -> Outcome:
            size = self._gram(inputs, 0, operand).dim()

            def gram(k: int) -> Tensor:
                found = self._gram(inputs, k, operand)
                if found.dim() != size:
                    raise UserError(
                        f"At '{operand.module}' one of '{inputs.names[0]}' and '{inputs.names[k]}' sent a Gram matrix "
                        "and the other its diagonal; all must send the same."
                    )
                return found

            return Factored(solve(operand.deltas, gram, inputs.weights, self.options))

        return outcome

    def _gram(self, inputs: Inputs, k: int, operand: Operand) -> Tensor:
        assert inputs.statistic is not None
        delta = inputs.read(k, operand.module)
        gram = inputs.statistic(STATISTIC, k, operand.module)
        width = delta.shape[1]
        if tuple(gram.shape) not in ((width,), (width, width)) or not finite(gram):
            raise UserError(
                f"The Gram matrix of '{inputs.names[k]}' at '{operand.module}' must be finite and of size {width}; its "
                f"shape is {tuple(gram.shape)}."
            )
        if operand.part != "B":
            return gram
        down = double(delta.down)
        return (down * double(gram) if gram.dim() == 1 else shrunk_into(None, down, gram, 1.0)) @ down.T
