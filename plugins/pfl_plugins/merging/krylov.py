"""The leading singular directions of one dense matrix, several times faster than all of them.

Block Lanczos (Golub, Luk, Overton 1981) with full orthogonalisation: the space spanned by V, M^T M V, (M^T M)^2 V, ...
soon holds the leading right singular vectors, also of a spectrum as flat as that of noise. Directions count as found
when `||M^T x - s y||`, in float64, is below a tolerance times the largest value for all of them: 1e-10 for numbers that
came in as float64, 1e-8 for shorter ones. Otherwise nothing is returned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_platform.lowrank.decompose import SVD
from pfl_platform.rng import torch_rng

_BLOCKS = 32
_EXTRA = 4
"""Random directions beside those that are asked for."""
_ROWS = 128
"""Rows that are in float64 at a time."""
_SMALL = 256
"""Matrices up to this side are not worth it."""


def leading_svd(matrix: Tensor, count: int, precision: torch.dtype, near: Tensor | None = None) -> SVD | None:
    """The `count` leading singular triplets of a matrix (d_out, d_in), or None when they did not converge in half of
    its dimensions, or would not pay. `precision` is the dtype that the numbers came in as.

    near: rows (k, d_in) whose span is thought to hold much of the leading directions; from there they are found sooner.
    """
    side, block = min(matrix.shape), count + _EXTRA
    if side <= _SMALL or 9 * block > side:
        return None
    tol = 1e-10 if precision == torch.float64 else 1e-8
    drawn = torch.randn(
        matrix.shape[1], block, generator=torch_rng("krylov", *matrix.shape, block), dtype=torch.float64
    )
    drawn = drawn.to(matrix.device)
    if near is not None:  # random directions beside them, should these be no guess at all
        drawn[:, : min(len(near), count)] = near[:count].double().T
    basis = torch.linalg.qr(drawn).Q
    image, back = _there_and_back(matrix, basis)
    while basis.shape[1] + block <= min(side // 2, _BLOCKS * block):
        step = back[:, -block:]
        for _ in range(2):  # once is not enough when little is left of a column
            step = step - basis @ (basis.T @ step)
        newest = torch.linalg.qr(step).Q
        there, again = _there_and_back(matrix, newest)
        basis, image, back = (torch.cat(pair, dim=1) for pair in ((basis, newest), (image, there), (back, again)))
        blocks = basis.shape[1] // block
        if blocks >= 5 and (found := _ritz(basis, image, back, count, tol)) is not None:
            return SVD(*found, precision)
    return None


def _there_and_back(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`M V` and `M^T M V` in float64, in one walk over the rows, so that a large matrix is read once."""
    there, back = [], torch.zeros_like(v.T)
    for rows in torch.split(matrix, _ROWS):
        part = rows.double()
        there.append(part @ v)
        back.addmm_(there[-1].T, part)
    return torch.cat(there), back.T


def squared_norm(matrix: Tensor) -> float:
    """The sum of all squares, in float64."""
    return sum(float(part.dot(part)) for part in (rows.flatten().double() for rows in torch.split(matrix, _ROWS)))


def _ritz(basis: Tensor, image: Tensor, back: Tensor, count: int, tol: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """(u, s, vt) of the best approximations in the space, if they have converged. image, back: M and M^T M of it."""
    _, s, yt = torch.linalg.svd(torch.linalg.qr(image, mode="r").R)
    if not s[count - 1] > 0:
        return None
    s, turn = s[:count], yt[:count].T
    y = basis @ turn
    residual = (back @ (turn / s) - y * s).norm(dim=0).max()
    return (image @ (turn / s), s, y.T) if residual <= tol * s[0] else None
