"""Factored deltas, and what can be said of them without forming the product.

A delta of one module is `scale * up @ down`, up (d_out, r), down (r, d_in), as `y = W x` counts d_out and d_in. Every
delta has a rank and a scale of its own; both are part of it, so that deltas of different clients can be compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.errors import UserError


@dataclass(frozen=True, eq=False)
class Delta:
    """`scale * up @ down`, in any floating dtype.

    `name` says whose it is, in messages. `precision` is the dtype of the numbers that came in; it sets tolerances and
    what goes out, also when the factors are held in float64 meanwhile. Raises `UserError` for factors that do not fit
    and for NaN or infinity.

    >>> delta = Delta(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0, 1.0]]), scale=0.5)
    >>> delta.shape, delta.rank, delta.dense()
    ((2, 3), 1, tensor([[1.5000, 0.0000, 0.5000],
            [3.0000, 0.0000, 1.0000]]))
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    name: str = ""
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise UserError(f"{self}: up must be (d_out, rank) and down (rank, d_in), not {up} and {down}.")
        for part, factor in (("up", self.up), ("down", self.down)):
            if not factor.is_floating_point():
                raise UserError(f"{self}: {part} is {factor.dtype}; only floating-point factors can be computed with.")
            if not finite(factor):
                raise UserError(f"{self}: {part} holds NaN or infinity; leave it out or send it again.")
        if not math.isfinite(self.scale):
            raise UserError(f"{self}: the scale is {self.scale}; it must be a finite number.")

    def __str__(self) -> str:
        return f"The delta of '{self.name}'" if self.name else "A delta without a name"

    @classmethod
    def from_dense(cls, matrix: Tensor, name: str = "") -> Delta:
        """A dense delta (d_out, d_in) as it is: one factor is the identity, nothing is decomposed."""
        small = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
        up, down = (small, matrix) if matrix.shape[0] <= matrix.shape[1] else (matrix, small)
        return cls(up, down, name=name)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """The inner dimension: an upper bound of the rank of the product."""
        return self.up.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what came in, and of what goes out."""
        return self.precision or torch.promote_types(self.up.dtype, self.down.dtype)

    @property
    def T(self) -> Delta:
        """The transpose, (d_in, d_out)."""
        return Delta(self.down.T, self.up.T, self.scale, self.name, self.precision)

    def rows(self, part: slice, dtype: torch.dtype | None = None) -> Tensor:
        """Some rows of the dense delta, (rows, d_in). Computed in float64 and rounded to the delta's own dtype, or
        computed and returned in `dtype`."""
        inside = dtype or torch.float64
        block = (self.up[part].detach().to(inside) * self.scale) @ self.down.detach().to(inside)
        return block.to(dtype or self.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """All rows, (d_out, d_in). For small deltas and for tests."""
        return self.rows(slice(None), dtype)

    def cast(self) -> Delta:
        """With both factors in the delta's own dtype: how an adapter is saved."""
        return Delta(self.up.to(self.dtype), self.down.to(self.dtype), self.scale, self.name)


def finite(tensor: Tensor) -> bool:
    """Whether all values are; a sum tells so in one pass, unless it overflows.

    >>> finite(torch.full((2,), 3e38)), finite(torch.tensor([float("inf"), -float("inf")]))
    (True, False)
    """
    return bool(tensor.detach().sum().isfinite()) or bool(tensor.isfinite().all())


def double(tensor: Tensor) -> Tensor:
    """The numbers in float64, cut off from any graph."""
    return tensor.detach().to(torch.float64)


def alike(deltas: Iterable[Delta]) -> tuple[Delta, ...]:
    """The deltas as a tuple; refuses none at all and shapes that differ."""
    found = tuple(deltas)
    if not found:
        raise UserError("There is no delta to work on; at least one client must have sent one.")
    for index, delta in enumerate(found):
        if delta.shape != found[0].shape:
            first, this = (f"'{d.name}'" if d.name else f"number {i}" for i, d in ((0, found[0]), (index, delta)))
            raise UserError(
                f"The delta of {this} is {' x '.join(map(str, delta.shape))} and that of {first} "
                f"{' x '.join(map(str, found[0].shape))}; only deltas of the same module can be combined."
            )
    return found


def shared_precision(deltas: Sequence[Delta]) -> torch.dtype:
    """The dtype that a result of several deltas goes out in."""
    return functools.reduce(torch.promote_types, (delta.dtype for delta in deltas))


def weighted_sum(deltas: Iterable[Delta], weights: Sequence[float] | None = None) -> Delta:
    """`sum_k weights[k] * D_k` (weights: all 1), exact: the factors side by side, so the ranks add up.

    Weights and scales go into up; the result has scale 1 and float64 factors.

    >>> ones, twos = (Delta.from_dense(torch.full((2, 2), value)) for value in (1.0, 2.0))
    >>> weighted_sum([ones, twos], [3.0, 0.5]).dense()
    tensor([[4., 4.],
            [4., 4.]])
    """
    found = alike(deltas)
    factors = _checked(weights, len(found))
    ups = [(factor * delta.scale) * double(delta.up) for factor, delta in zip(factors, found, strict=True)]
    downs = [double(delta.down) for delta in found]
    return Delta(torch.cat(ups, dim=1), torch.cat(downs), precision=shared_precision(found))


def mean(deltas: Iterable[Delta], weights: Sequence[float] | None = None) -> Delta:
    """`sum_k w_k D_k / sum_k w_k` over those that are there, uniform when no weights are given.

    Weights must not be negative (sample counts, say) and are normalised here, so that a client that has dropped out
    leaves a mean and not a fraction of one.
    """
    found = alike(deltas)
    factors = _checked(weights, len(found))
    if min(factors) < 0 or sum(factors) <= 0:
        raise UserError(f"The weights of a mean must not be negative and not all be zero; they are {factors}.")
    return weighted_sum(found, [factor / sum(factors) for factor in factors])


def _checked(weights: Sequence[float] | None, count: int) -> list[float]:
    factors = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(factors) != count or not all(map(math.isfinite, factors)):
        raise UserError(f"{count} deltas need {count} finite weights; they are {factors}.")
    return factors


def inner(one: Delta, other: Delta) -> float:
    """`<D_1, D_2>`, the sum of the products of all entries: `s_1 s_2 tr((up_1^T up_2) (down_2 down_1^T))`, from the
    two small matrices alone."""
    one, other = alike([one, other])
    left = double(one.up).T @ double(other.up)
    right = double(one.down) @ double(other.down).T
    return one.scale * other.scale * float((left * right).sum())


def gram(deltas: Iterable[Delta]) -> Tensor:
    """All inner products, (K, K) float64.

    >>> gram([Delta.from_dense(torch.eye(2)), Delta.from_dense(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))])
    tensor([[ 2.,  3.],
            [ 3., 25.]], dtype=torch.float64)
    """
    found = alike(deltas)
    products = torch.zeros(len(found), len(found), dtype=torch.float64)
    for i, one in enumerate(found):
        for j in range(i, len(found)):
            products[i, j] = products[j, i] = inner(one, found[j])
    return products


def norm(delta: Delta) -> float:
    """The Frobenius norm. From triangular factors, so that a sum that cancels has norm zero to rounding (the root of
    `inner` would lose half of the digits there)."""
    product = root(double(delta.up)) @ root(double(delta.down).T).T
    return abs(delta.scale) * float(torch.linalg.matrix_norm(product))


def root(factor: Tensor) -> Tensor:
    """T, at most as tall as `factor` (d, r) is wide, with `T^T T = factor^T factor`."""
    if factor.shape[0] <= factor.shape[1]:
        return factor
    triangle: Tensor = torch.linalg.qr(factor, mode="r").R
    return triangle
