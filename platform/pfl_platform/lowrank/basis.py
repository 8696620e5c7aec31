"""One basis for the outputs (or inputs) of many deltas, and each delta's coordinates in it.

The deltas side by side, `[D_1, ..., D_K]` (d_out, K d_in), have an SVD `U S V^T`. Cut into K blocks, V^T gives each
delta coordinates in the same basis: `D_k = U S V_k^T`, exactly (Stoica et al., arXiv:2410.19735). No dense delta is
formed here: with the triangle T_k of the QR of down_k^T, `X = [s_1 up_1 T_1^T, ..., s_K up_K T_K^T]` (d_out, sum of
ranks) has the same U and S, and `V_k^T = S^-1 U^T D_k` stays factored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pfl_platform.errors import UserError, nearest
from pfl_platform.lowrank.decompose import SVD, numerical_rank, rounding, tolerance
from pfl_platform.lowrank.deltas import Delta, alike, double, root, shared_precision
from pfl_platform.lowrank.gauge import signs
from pfl_platform.lowrank.squares import descending, right_vectors

Axis: TypeAlias = Literal["output", "input"]
"""The space of the basis: outputs (deltas joined along their inputs) or inputs (joined along their outputs)."""

Route: TypeAlias = Literal["auto", "stacked", "gram"]

_EPS = torch.finfo(torch.float64).eps
_INVERTIBLE = 1e3
"""Condition numbers up to this cost three of sixteen digits."""


@dataclass(frozen=True, eq=False)
class CommonBasis:
    """`D_k = U S V_k^T` for all k: basis U (d, R), values S (R,) descending; both float64.

    With axis "output", d is d_out and V_k^T is (R, d_in); with "input" the same holds of the transposed deltas. The
    largest entry of each basis vector is positive; flipping it flips a row of every V_k^T. `lefts` holds
    `S^-1 U^T s_k up_k` of each delta where the basis was found by way of them.
    """

    basis: Tensor
    values: Tensor
    axis: Axis
    deltas: tuple[Delta, ...]
    lefts: tuple[Tensor, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.values)

    def coordinates(self, index: int, *, weighted: bool = False) -> Delta:
        """`V_k^T` of one delta, or `S V_k^T` when weighted: (R, d_in) for the axis "output", (R, d_out) for "input".

        Formed when asked for, and itself a delta, since it has the rank of D_k: write it out with `.dense()`, walk
        many of them in `blocks`, sum them in `deltas`.
        """
        delta = self._turned(self.deltas[index])
        if self.lefts:
            left = self.lefts[index] * self.values[:, None] if weighted else self.lefts[index]
            return Delta(left, delta.down, 1.0, delta.name, delta.dtype)
        left = self.basis.T @ (delta.scale * double(delta.up))
        left = left if weighted else left / self.values[:, None]
        return Delta(left, delta.down, 1.0, delta.name, delta.dtype)

    def lift(self, coordinates: Delta | Tensor, *, weighted: bool = False) -> Delta:
        """From coordinates back to a delta: `U S X`, or `U X` when X is weighted already."""
        columns = self.basis if weighted else self.basis * self.values
        precision = shared_precision(self.deltas)
        if isinstance(coordinates, Delta):
            up, down = columns @ (coordinates.scale * double(coordinates.up)), double(coordinates.down)
        else:
            up, down = columns, double(coordinates)
        return self._turned(Delta(up, down, precision=precision))

    def inside(self, coordinates: Delta | Tensor, *, weighted: bool = False) -> Delta:
        """`S X` (or X when it is weighted already): what is lifted, before the isometry U. It has the norm and the
        singular values of the delta, (R, d_in) for the axis "output"."""
        values = torch.ones_like(self.values) if weighted else self.values
        precision = shared_precision(self.deltas)
        if isinstance(coordinates, Delta):
            up, down = (coordinates.scale * values)[:, None] * double(coordinates.up), double(coordinates.down)
        else:
            up, down = torch.diag(values), double(coordinates)
        return Delta(up, down, precision=precision)

    def raised(self, inside: SVD) -> SVD:
        """The SVD of a delta, from that of what is `inside`: U is an isometry."""
        u = self.basis @ inside.u
        if self.axis == "output":
            return replace(inside, u=u)
        flips = signs(u.T)
        return replace(inside, u=inside.vt.T * flips, vt=u.T * flips[:, None])

    def _turned(self, delta: Delta) -> Delta:
        return delta if self.axis == "output" else delta.T


def common_basis(
    deltas: Iterable[Delta], axis: Axis = "output", tol: float | None = None, route: Route = "auto"
) -> CommonBasis:
    """The basis of all deltas, without directions of (numerically) no singular value.

    Two routes give U and S. "stacked": QR of X, SVD of its triangle, exact to rounding; of large and well conditioned X
    eigenvectors of `X^T X`, as exact as `squares` states. "gram": the eigenvectors of
    `X X^T = sum_k D_k D_k^T` (d, d), one delta at a time; several times faster when the ranks add up to more than d,
    but it squares the singular values, so that those below `sqrt(d eps)` of the largest (about 7e-7 at d = 2048) are
    lost. "auto" takes it for more ranks than dimensions, unless the tolerance is finer than squares can tell, as it is
    for numbers that came in as float64. `tol` as in `svd`.

    >>> one = Delta(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]]))
    >>> two = Delta(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 4.0]]))
    >>> found = common_basis([one, two])
    >>> [round(value, 6) for value in (*found.basis.flatten().tolist(), *found.values.tolist())]
    [1.0, 0.0, 5.0]
    >>> [[round(x, 6) for x in found.coordinates(k).dense().flatten().tolist()] for k in (0, 1)]
    [[0.6, 0.0], [0.0, 0.8]]
    """
    for value, known in ((axis, get_args(Axis)), (route, get_args(Route))):
        if value not in known:
            raise UserError(f"No axis or route of a common basis is called '{value}'.{nearest(value, known)}")
    found = alike(deltas)
    turned = found if axis == "output" else tuple(delta.T for delta in found)
    size, ranks = turned[0].shape[0], sum(delta.rank for delta in turned)
    least = tolerance(shared_precision(found)) if tol is None else tol
    if route == "auto":
        route = "gram" if ranks > size and least > _EPS**0.5 else "stacked"
    if route == "gram":
        basis, values, lefts = *_from_gram(turned), list[Tensor]()
        least = max(least, (size * _EPS) ** 0.5)
    else:
        basis, values, lefts = _from_stack(turned)
    kept = numerical_rank(values, least, max(map(rounding, turned)))
    basis = basis[:, :kept]
    flips = signs(basis.T)
    rows = tuple(left[:kept] * flips[:, None] for left in lefts)
    return CommonBasis(basis * flips, values[:kept], axis, found, rows)


def _triangle(delta: Delta) -> Tensor:
    return root(double(delta.down).T)


def _compressed(delta: Delta, triangle: Tensor) -> Tensor:
    """`X_k = s up T^T` (d, r), with `X_k X_k^T = D_k D_k^T`."""
    return delta.scale * (double(delta.up) @ triangle.T)


def _from_stack(deltas: tuple[Delta, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
    triangles = [_triangle(delta) for delta in deltas]
    stacked = torch.cat([_compressed(delta, own) for delta, own in zip(deltas, triangles, strict=True)], dim=1)
    if stacked.shape[0] <= stacked.shape[1]:
        # The rows' triangle has the same left singular vectors and is square.
        left, values, _ = torch.linalg.svd(root(stacked.T).T, full_matrices=False)
        return left, values, []
    quick = right_vectors(stacked, shared_precision(deltas))
    if quick is not None:
        values, right = quick
        return stacked @ (right / values), values, _lefts(right, triangles)
    outer, triangle = torch.linalg.qr(stacked)
    left, values, _ = torch.linalg.svd(triangle)
    return outer @ left, values, []


def _lefts(right: Tensor, triangles: list[Tensor]) -> list[Tensor]:
    """The rows of V^T that belong to a delta, in terms of its down: `V_k^T = right_k^T T^-T down`; none where a
    triangle is too near to a singular one for that. Saves the product of U with every up."""
    found, start = [], 0
    for triangle in triangles:
        size = len(triangle)
        if triangle.shape[1] != size or not float(torch.linalg.cond(triangle)) < _INVERTIBLE:
            return []
        part = right[start : start + size].T
        found.append(torch.linalg.solve_triangular(triangle.T, part, upper=False, left=False))
        start += size
    return found


def _from_gram(deltas: tuple[Delta, ...]) -> tuple[Tensor, Tensor]:
    size = deltas[0].shape[0]
    total = torch.zeros(size, size, dtype=torch.float64, device=deltas[0].up.device)
    for delta in deltas:
        part = _compressed(delta, _triangle(delta))
        total.addmm_(part, part.T)
    squares, vectors = descending(total)
    return vectors, squares.clamp_min(0).sqrt()
