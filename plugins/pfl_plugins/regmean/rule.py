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

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.deltas import Delta, double, finite, mean, shared_precision
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Factored, Outcome
from pfl_plugins.merging.rules import Bound, Rule
from pfl_plugins.regmean.config import RegMeanOptions

STATISTIC = "gram"
BLOCK = 128
"""Rows of a Gram matrix that are in float64 at a time."""


def taken_in(rows: Tensor, gram: Tensor, total: Tensor | None = None, a: float = 1.0, weight: float = 1.0) -> Tensor:
    """`rows @ G` in float64; adds `weight * G'` to the lower triangle of `total`, for `G' = a G + (1 - a) diag(G)`.

    rows (n, d) and total (d, d) are float64, gram (d, d) is of any precision. Its lower triangle alone is read, so that
    products and sums mean the same symmetric matrix, in blocks of rows: a whole copy in float64 is never there.

    >>> gram, total = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.zeros(2, 2).double()
    >>> taken_in(torch.eye(2).double(), gram, total, 0.5), total
    (tensor([[2., 1.],
            [1., 4.]], dtype=torch.float64), tensor([[2.0000, 0.0000],
            [0.5000, 4.0000]], dtype=torch.float64))
    """
    found = torch.zeros_like(rows)
    if total is not None:
        total.diagonal().add_(double(gram.diagonal()), alpha=weight * (1.0 - a))
    for start in range(0, len(gram), BLOCK):
        stop = min(start + BLOCK, len(gram))
        left = gram[start:stop, :stop].detach().to(torch.float64, copy=True)
        left[:, start:] = left[:, start:].tril()
        found[:, start:stop].addmm_(rows[:, :stop], left.T)
        found[:, :stop].addmm_(rows[:, start:stop], left)
        found[:, start:stop].sub_(rows[:, start:stop] * left[:, start:].diagonal())  # the diagonal came twice
        if total is not None:
            total[start:stop, :stop].add_(left, alpha=weight * a)
    return found


def regmean(stack: Tensor, grams: Tensor, weights: Sequence[float], *, a: float = 0.9, ridge: float = 1e-6) -> Tensor:
    """RegMean of dense maps (K, d_out, d_in) with Gram matrices (K, d_in, d_in), or their diagonals (K, d_in)."""
    deltas = [Delta.from_dense(one) for one in stack]
    return solve(deltas, lambda k: grams[k], weights, RegMeanOptions(a=a, ridge=ridge)).dense()


@dataclass(frozen=True)
class Regression:
    """What the Gram matrices of one input make of K sets of rows (n_k, d_in): `plain` is `rows_k G_k`, `solved` is
    `w_k rows_k G'_k (sum_j w_j G'_j)^-1`, None where no input is anything but zero."""

    plain: list[Tensor]
    solved: list[Tensor] | None


def regression(
    rows: Sequence[Tensor], gram: Callable[[int], Tensor], weights: Sequence[float], options: RegMeanOptions
) -> Regression:
    """gram(k) is read once, one at a time, since K of them may be too many; their sum is factored in its place."""
    total: Tensor | None = None
    level = 0.0
    plain, shrunk = [], []
    for k, (own, weight) in enumerate(zip(rows, weights, strict=True)):
        found = gram(k)
        diagonal = double(found if found.dim() == 1 else found.diagonal())
        if total is None:
            total = diagonal.new_zeros(found.shape)
        if found.dim() == 1:  # G' of a diagonal is itself
            total.add_(diagonal, alpha=weight)
            plain.append(own * diagonal)
            shrunk.append(plain[-1])
        else:
            plain.append(taken_in(own, found, total, options.a, weight))
            shrunk.append(options.a * plain[-1] + (1.0 - options.a) * (own * diagonal))
        level += weight * float(diagonal.mean())
        del found  # before the next one is read
    assert total is not None
    own_of_total = total if total.dim() == 1 else total.diagonal()
    if not bool((own_of_total > 0).any()):
        return Regression(plain, None)
    ridge = options.ridge * level / sum(weights)
    own_of_total.add_(ridge * sum(weights))
    joined = torch.cat([weight * (down + ridge * own) for weight, down, own in zip(weights, shrunk, rows, strict=True)])
    return Regression(plain, list(torch.split(_divided(joined, total), [len(own) for own in rows])))


def solve(
    deltas: Sequence[Delta], gram: Callable[[int], Tensor], weights: Sequence[float], options: RegMeanOptions
) -> Delta:
    """The merged delta, of rank sum r_k."""
    found = regression([double(delta.down) for delta in deltas], gram, weights, options)
    return joined(deltas, found.solved, weights)


def joined(deltas: Sequence[Delta], solved: Sequence[Tensor] | None, weights: Sequence[float]) -> Delta:
    """`[s_1 up_1, ..., s_K up_K]` over the solved rows; the weighted mean where there are none."""
    if solved is None:
        return mean(deltas, weights)
    ups = [one.scale * double(one.up) for one in deltas]
    return Delta(torch.cat(ups, dim=1), torch.cat(list(solved)), precision=shared_precision(deltas))


def _divided(rows: Tensor, total: Tensor) -> Tensor:
    """`rows @ total^-1` for a diagonal, or for a symmetric positive definite total. Of that only the lower triangle is
    there, and it is overwritten. Raises `UserError` when singular."""
    if total.dim() == 1:
        if not bool((total > 0).all()):
            raise UserError("An input feature is zero at every client, so RegMean has no solution; set ridge above 0.")
        return rows / total
    # In Fortran's order, which LAPACK wants, the lower triangle is the upper one: U^T U, without a copy.
    upper, failed = total.T, torch.empty((), dtype=torch.int32, device=total.device)
    torch.linalg.cholesky_ex(upper, upper=True, out=(upper, failed))
    if int(failed):
        raise UserError("The sum of the Gram matrices is singular, so RegMean has no solution; set a larger ridge.")
    halfway = torch.linalg.solve_triangular(upper, rows, upper=True, left=False)
    solved: Tensor = torch.linalg.solve_triangular(total, halfway, upper=False, left=False)
    return solved


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
        inputs, groups = field.inputs, self._groups(field.inputs)
        ready: dict[str, Delta] = {}
        inner: dict[str, list[Tensor]] = {}

        def outcome(operand: Operand, _: int) -> Outcome:
            if operand.part == "B":
                grams = inner.pop(operand.module)
                return Factored(solve(operand.deltas, grams.__getitem__, inputs.weights, self.options))
            if operand.module not in ready:
                self._regress(field, groups[operand.module], ready, inner)
            return Factored(ready.pop(operand.module))

        return outcome

    def _groups(self, inputs: Inputs) -> dict[str, tuple[str, ...]]:
        """Module -> all modules that read its input: they share the sum of Gram matrices, and its factors."""
        found: dict[Hashable, list[str]] = {}
        for module in inputs.modules:
            found.setdefault(module if inputs.shared is None else inputs.shared(STATISTIC, module), []).append(module)
        return {module: tuple(group) for group in found.values() for module in group}

    def _regress(
        self, field: Field, group: Sequence[str], ready: dict[str, Delta], inner: dict[str, list[Tensor]]
    ) -> None:
        """The results of a group's modules, and the Gram matrices of what their B read; every Gram is read once."""
        inputs = field.inputs
        operands = [field.read(module)[0] for module in group]
        count = range(len(inputs))
        parts = [[double(operand.deltas[k].down) for operand in operands] for k in count]
        whole = [[double(inputs.read(k, module).down) for module in group] if operands[0].part else [] for k in count]
        # What A hears decides what B reads; with a reference, what is merged of A is only what has moved.
        moved = any(not torch.equal(one, own) for k in count for one, own in zip(whole[k], parts[k], strict=False))
        parts = [parts[k] + whole[k] if moved else parts[k] for k in count]
        sizes = [[len(part) for part in parts[k]] for k in count]
        kinds: dict[int, int] = {}

        def gram(k: int) -> Tensor:
            found = _gram(inputs, k, group[0])
            if kinds.setdefault(0, found.dim()) != found.dim():
                raise UserError(
                    f"At '{group[0]}' one of '{inputs.names[0]}' and '{inputs.names[k]}' sent a Gram matrix and the "
                    "other its diagonal; all must send the same."
                )
            return found

        found = regression([torch.cat(parts[k]) for k in count], gram, inputs.weights, self.options)
        solved = None if found.solved is None else [torch.split(found.solved[k], sizes[k]) for k in count]
        for number, (module, operand) in enumerate(zip(group, operands, strict=True)):
            rows = None if solved is None else [solved[k][number] for k in count]
            ready[module] = joined(operand.deltas, rows, inputs.weights)
            if operand.part:
                place = number + len(group) * moved
                inner[module] = [torch.split(found.plain[k], sizes[k])[place] @ parts[k][place].T for k in count]


def _gram(inputs: Inputs, k: int, module: str) -> Tensor:
    assert inputs.statistic is not None
    width = inputs.read(k, module).shape[1]
    gram = inputs.statistic(STATISTIC, k, module)
    if tuple(gram.shape) not in ((width,), (width, width)) or not finite(gram):
        raise UserError(
            f"The Gram matrix of '{inputs.names[k]}' at '{module}' must be finite and of size {width}; its "
            f"shape is {tuple(gram.shape)}."
        )
    return gram
