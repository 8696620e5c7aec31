"""The thin SVD of a factored delta, and truncation to an adapter's rank and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from pfl_platform.errors import UserError, nearest
from pfl_platform.lowrank.deltas import Delta, double, root
from pfl_platform.lowrank.gauge import signs
from pfl_platform.lowrank.squares import by_squares
from pfl_platform.rng import torch_rng

Split: TypeAlias = Literal["left", "symmetric"]
"""Where the singular values go: all into up (down has orthonormal rows), or their roots into both factors."""

_EPS = torch.finfo(torch.float64).eps


def tolerance(precision: torch.dtype) -> float:
    """Singular values below this, relative to the largest, count as zero: 1e-10 for numbers that came in as float64,
    1e-6 for shorter ones (the product of two factors has its rank exactly, whatever they are rounded to)."""
    return 1e-10 if precision == torch.float64 else 1e-6


@dataclass(frozen=True, eq=False)
class SVD:
    """`u @ diag(s) @ vt`: u (d_out, R) and vt (R, d_in) orthonormal, s (R,) positive and descending; all float64.

    R is the numerical rank. The largest entry of each row of vt is positive.
    """

    u: Tensor
    s: Tensor
    vt: Tensor
    precision: torch.dtype = torch.float64
    name: str = ""

    @property
    def rank(self) -> int:
        return len(self.s)

    def delta(self, values: Tensor | None = None) -> Delta:
        """As a delta of rank R, with other singular values (R,) in place of its own if wanted."""
        return Delta(self.u * (self.s if values is None else double(values)), self.vt, 1.0, self.name, self.precision)

    def tail(self, rank: int) -> float:
        """What truncation to `rank` loses, relative: `sqrt(sum_{i > rank} s_i^2 / sum_i s_i^2)`; 0 for zero."""
        return float(self.s[rank:].norm() / self.s.norm()) if self.rank > rank else 0.0


class Truncation(NamedTuple):
    """A delta of the wanted rank and scale, and `||D - truncated||_F / ||D||_F` (before rounding to its dtype)."""

    delta: Delta
    error: float


def svd(delta: Delta, tol: float | None = None, *, exact: bool = False) -> SVD:
    """The thin SVD without the dense delta: QR of up and of down^T, SVD of the small core between them.

    Directions with a singular value of at most `tol` times the largest are dropped (by default as `tolerance` says),
    and so are those that are no more than the rounding errors of the product. Where the inner dimension exceeds a
    side of the delta, that side is left as it is: the product is then no larger than its factors. Large ones whose
    singular values are all well above rounding go by eigenvectors instead, see `squares`, which states the error; not
    where `exact` is set, for who knows that they are not.

    >>> found = svd(Delta(torch.tensor([[0.0, 3.0], [2.0, 0.0]]), torch.eye(2), scale=-1.0))
    >>> [[round(x) for x in part.flatten().tolist()] for part in (found.u, found.s, found.vt)]
    [[-1, 0, 0, -1], [3, 2], [0, 1, 1, 0]]
    """
    floor, least = rounding(delta), tolerance(delta.dtype) if tol is None else tol
    quick = None if exact else by_squares(delta)
    if quick is not None and numerical_rank(quick.values, least, floor) == len(quick.values):
        return _canonical(quick.u, quick.values, quick.vt, delta)
    left, right = double(delta.up), double(delta.down).T
    left_basis, left = _reduced(left)
    right_basis, right = _reduced(right)
    u, s, vt = torch.linalg.svd(delta.scale * (left @ right.T), full_matrices=False)
    kept = numerical_rank(s, least, floor)
    u, s, vt = u[:, :kept], s[:kept], vt[:kept]
    u = u if left_basis is None else left_basis @ u
    vt = vt if right_basis is None else vt @ right_basis.T
    return _canonical(u, s, vt, delta)


def _canonical(u: Tensor, s: Tensor, vt: Tensor, delta: Delta) -> SVD:
    flips = signs(vt)
    return SVD(u * flips, s, vt * flips[:, None], delta.dtype, delta.name)


def values(delta: Delta, tol: float | None = None) -> Tensor:
    """All singular values above the tolerance, (R,) float64, from the triangles of the factors: half the work of `svd`
    where squares do not hold them.

    >>> values(Delta(torch.eye(2), torch.diag(torch.tensor([3.0, -4.0])))).tolist()
    [4.0, 3.0]
    """
    core = root(double(delta.up)) @ root(double(delta.down).T).T
    found: Tensor = torch.linalg.svdvals(abs(delta.scale) * core)
    return found[: numerical_rank(found, tolerance(delta.dtype) if tol is None else tol, rounding(delta))]


class Leading(NamedTuple):
    """The leading part of an SVD, the energy (sum of squares) outside it, and, where they are known, all singular
    values above the tolerance."""

    svd: SVD
    rest: float
    values: Tensor | None


def leading(delta: Delta, count: int, tol: float | None = None) -> Leading:
    """The `count` leading directions of a delta (or all there are). As exact as `svd`, and faster where they are few
    of many; the small singular values are then not looked for unless squares hold them (see `squares`).

    >>> found = leading(Delta.from_dense(torch.diag(torch.tensor([4.0, 3.0, 2.0]))), 1)
    >>> found.svd.s.tolist(), found.rest, found.values.tolist()
    ([4.0], 13.0, [4.0, 3.0, 2.0])
    """
    quick = by_squares(delta, count)
    least = tolerance(delta.dtype) if tol is None else tol
    if quick is not None and quick.values[: len(quick.vt)][-1] > max(least * float(quick.values[0]), rounding(delta)):
        found = _canonical(quick.u, quick.values[: len(quick.vt)], quick.vt, delta)
        rest = max(0.0, quick.energy - float(found.s.square().sum()))
        known = numerical_rank(quick.values[: quick.sure], least, rounding(delta))
        # The first value that is too small ends them; where none is, squares must hold all of them.
        whole = known < quick.sure or quick.sure == len(quick.values)
        return Leading(found, rest, quick.values[:known] if whole else None)
    every = svd(delta, tol, exact=True)
    part = SVD(every.u[:, :count], every.s[:count], every.vt[:count], every.precision, every.name)
    return Leading(part, float(every.s[count:].square().sum()), every.s)


def _reduced(factor: Tensor) -> tuple[Tensor | None, Tensor]:
    """An orthonormal basis and the triangle in it; (None, factor) when the factor is not taller than wide."""
    if factor.shape[0] <= factor.shape[1]:
        return None, factor
    basis, triangle = torch.linalg.qr(factor)
    return basis, triangle


def numerical_rank(values: Tensor, tol: float, floor: float = 0.0) -> int:
    """How many of the descending values exceed both `tol` times the first and `floor`.

    >>> numerical_rank(torch.tensor([4.0, 1.0, 1e-9]), 1e-6), numerical_rank(torch.zeros(3), 1e-6)
    (2, 0)
    """
    return int((values > max(tol * float(values[0]), floor)).sum()) if len(values) else 0


def rounding(delta: Delta) -> float:
    """A bound of the rounding errors in the singular values of a delta: what remains of terms that cancel."""
    sizes = double(delta.up).norm(dim=0) * double(delta.down).norm(dim=1)
    return 16 * _EPS * abs(delta.scale) * float(sizes.sum())


def truncate(delta: Delta | SVD, rank: int, *, split: Split = "left", scale: float = 1.0, seed: int = 0) -> Truncation:
    """The nearest delta of rank `rank`, as factors of an adapter with this scale: `scale * up @ down` is the sum of
    the `rank` largest terms of the SVD. In the dtype that came in.

    Several adapters of one delta: take its `svd` once. A delta of smaller rank is filled up, with zero columns in up
    and orthonormal rows in down that are orthogonal to the others, drawn from `seed`; were both zero, the added part
    would never get a gradient.

    >>> delta = Delta.from_dense(torch.diag(torch.tensor([4.0, 3.0, 0.0])))
    >>> shorter, error = truncate(delta, rank=1, scale=2.0)
    >>> shorter.up.tolist(), shorter.down.tolist(), round(error, 6)
    ([[2.0], [0.0], [0.0]], [[1.0, 0.0, 0.0]], 0.6)
    """
    whole = delta if isinstance(delta, SVD) else svd(delta)
    check_adapter(rank, whole.vt.shape[1], split, scale)
    u, s, vt = whole.u[:, :rank], whole.s[:rank], whole.vt[:rank]
    up, down = (u * (s / scale), vt) if split == "left" else (u * (s / scale).sqrt(), (s / scale).sqrt()[:, None] * vt)
    missing = rank - len(s)
    if missing:
        up = torch.cat([up, up.new_zeros(len(up), missing)], dim=1)
        down = torch.cat([down, completion(vt, missing, seed)])
    return Truncation(Delta(up, down, scale, whole.name, whole.precision).cast(), whole.tail(rank))


def check_adapter(rank: int, width: int, split: str, scale: float) -> None:
    """Refuses what no adapter of a module with `width` inputs can have."""
    if not 1 <= rank <= width:
        raise UserError(f"An adapter of a module with {width} inputs has a rank from 1 to {width}, not {rank}.")
    if split not in get_args(Split):
        raise UserError(f"No way to split singular values is called '{split}'.{nearest(split, get_args(Split))}")
    if not 0 < scale < float("inf"):
        raise UserError(f"An adapter's scale must be positive and finite, not {scale}.")


def completion(rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """`count` orthonormal rows (count, d), orthogonal to the orthonormal `rows` (k, d); k + count is at most d."""
    width = rows.shape[1]
    drawn = torch.randn(width, count, generator=torch_rng(seed, "completion", width, count), dtype=torch.float64)
    drawn = drawn.to(rows.device)
    for _ in range(2):  # once is not enough when little is left of a column
        drawn = torch.linalg.qr(drawn - rows.T @ (rows @ drawn)).Q
    return drawn.T * signs(drawn.T)[:, None]
