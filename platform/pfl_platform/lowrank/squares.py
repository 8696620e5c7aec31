"""Singular values and vectors by eigenvectors of a Gram matrix, where its squares can hold them.

Of large matrices these take a fraction of the time of a QR and an SVD, and are made of matrix products, which threads
share well. But a Gram matrix holds squares: with `noise`, a bound of its rounding errors, an eigenvalue `l` has the
relative error `noise / l`, and so has the right angle between its vector and the others. Every function here states
that error before it answers, and answers None where it exceeds `ALLOWED`; the caller then takes the SVD.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfl_platform.lowrank.deltas import Delta, double

SMALL = 256
"""Matrices with a side below this are not worth it."""

_EPS = torch.finfo(torch.float64).eps
_STEPS = 5


def allowed(precision: torch.dtype) -> float:
    """The largest relative error: 1e-10 for numbers that came in as float64, 1e-8 for shorter ones. A matrix may so
    have singular values down to 1.2e-2 of the largest, or down to 1.2e-3."""
    return 1e-10 if precision == torch.float64 else 1e-8


class Found(NamedTuple):
    """u (d_out, c) and vt (c, d_in), the leading singular vectors of a delta. values (q,): all its singular values, q
    of them, of which `sure` are within the allowed error; energy: the sum of all squares."""

    u: Tensor
    vt: Tensor
    values: Tensor
    sure: int
    energy: float


def by_squares(delta: Delta, count: int | None = None) -> Found | None:
    """The `count` leading singular vectors (all of them, without a count) and all singular values of a delta, in
    float64; None where those of that many cannot be had within the allowed error, or would not pay.

    The eigenvectors of `up (down down^T) up^T`, or, where the inner dimension n is below both sides, of the (n, n)
    matrix `L^T (up^T up) L` with `L L^T = down down^T`.

    >>> rows = torch.eye(300) + 0.01
    >>> found = by_squares(Delta(2 * rows, torch.eye(300), scale=-0.5), count=1)
    >>> round(float(found.values[0]), 6), found.vt.shape, found.sure   # 1 + 300 * 0.01, then 299 ones
    (4.0, torch.Size([1, 300]), 300)
    """
    (d_out, d_in), inner = delta.shape, delta.rank
    if min(d_out, d_in, inner) < SMALL or not delta.scale:
        return None
    if d_in < d_out and d_in <= inner:
        turned = by_squares(delta.T, count)
        return turned and turned._replace(u=turned.vt.T, vt=turned.u.T)
    up, down = double(delta.up), double(delta.down)
    noise = 64 * _EPS * _square(up) * _square(down)
    total, weights = down @ down.T, _diagonal(up)
    if weights is not None:
        total = total * weights[:, None] * weights
    elif d_out <= inner:
        total = up @ total @ up.T
    else:
        lower, broken = torch.linalg.cholesky_ex(total)
        if int(broken):
            return None
        total = lower.T @ (up.T @ up) @ lower
    least = noise / allowed(delta.dtype)
    if count is None and not _all_above(total, least):
        return None
    squares, vectors = descending(total)
    sure = int((squares >= least).sum()) if noise > 0 else 0
    wanted = len(squares) if count is None else min(count, len(squares))
    if sure < wanted:
        return None
    values, vectors = squares.clamp_min(0).sqrt(), vectors[:, :wanted]
    u = vectors if d_out <= inner else up @ (lower @ (vectors / values[:wanted]))
    vt = (u.T @ up if weights is None else u.T * weights) @ down / values[:wanted, None]
    size = abs(delta.scale)
    return Found(u, vt * (delta.scale / size), values * size, sure, float(squares.sum()) * size**2)


def right_vectors(tall: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """All singular values (n,) and right singular vectors (n, n) of a matrix (d, n) with d >= n; None as above."""
    if min(tall.shape) < SMALL:
        return None
    total = tall.T @ tall
    if not _all_above(total, 64 * _EPS * _square(tall) / allowed(precision)):
        return None
    squares, vectors = descending(total)
    return squares.clamp_min(0).sqrt(), vectors


def _all_above(symmetric: Tensor, least: float) -> bool:
    """Whether all eigenvalues exceed a positive number: a Cholesky factor exists of what is left when it is taken off.
    It costs a fifteenth of the eigenvectors."""
    lowered = symmetric.clone()
    lowered.diagonal().sub_(least)
    return least > 0 and not int(torch.linalg.cholesky_ex(lowered).info)


def descending(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors (as columns), the largest first."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0), vectors.flip(1)


def _diagonal(matrix: Tensor) -> Tensor | None:
    """The diagonal of a square matrix that has nothing else."""
    if matrix.shape[0] != matrix.shape[1]:
        return None
    found = matrix.diagonal()
    return found if int(matrix.count_nonzero()) == int(found.count_nonzero()) else None


def _square(matrix: Tensor) -> float:
    """The square of the largest singular value, by power iteration from the column sums of magnitudes: a lower bound,
    and seldom below half of it."""
    x = matrix.abs().sum(dim=0)
    size = 0.0
    for _ in range(_STEPS):
        norm = float(x.norm())
        if not norm > 0:
            return 0.0
        image = matrix @ (x / norm)
        size = max(size, float(image.dot(image)))
        x = matrix.T @ image
    return size
