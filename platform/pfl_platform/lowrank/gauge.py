"""The gauge of factors: `(up, down)` and `(up T^T, T down)` are the same delta for every orthogonal T.

From round to round signs flip and close singular values mix. Whatever compares factors (a penalty on their distance,
a cosine of factors, their average, the moments of an optimiser) must fix the gauge first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.lowrank.deltas import Delta, double

_NEAR = 1e-6
"""Entries this close to the largest (relative) count as equal to it, and the first of them decides. Otherwise
rounding would choose between +a and -a."""


def signs(rows: Tensor) -> Tensor:
    """For each row +1 or -1, what makes its entry of largest magnitude positive. Rows of zeros get +1.

    >>> signs(torch.tensor([[1.0, -3.0], [2.0, 1.0], [-2.0, 2.0], [0.0, 0.0]]))
    tensor([-1.,  1., -1.,  1.])
    """
    if not rows.shape[1]:
        return rows.new_ones(len(rows))
    size = rows.abs()
    first = (size >= (1 - _NEAR) * size.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1, keepdim=True)
    return torch.where(rows.gather(1, first).squeeze(1) < 0, -1.0, 1.0).to(rows.dtype)


def canonical(delta: Delta) -> Delta:
    """The same delta with the largest entry of each row of down positive."""
    flips = signs(delta.down.detach())
    return Delta(delta.up * flips, delta.down * flips[:, None], delta.scale, delta.name, delta.precision)


def rotation(down: Tensor, reference: Tensor) -> Tensor:
    """`argmin_T ||reference - T down||_F` over orthogonal T, (r, r) float64; both inputs (r, d_in).

    The orthogonal Procrustes problem (Schoenemann 1966): `T = P Q^T` from the SVD `reference down^T = P S Q^T`.
    """
    if down.shape != reference.shape:
        raise UserError(
            f"A rotation between factors of {tuple(down.shape)} and {tuple(reference.shape)} does not exist; "
            "both need the same rank and the same module."
        )
    left, _, right = torch.linalg.svd(double(reference) @ double(down).T)
    turn: Tensor = left @ right
    return turn


def align(delta: Delta, reference: Delta) -> Delta:
    """The same delta in the gauge in which its down is nearest to the reference's: T down and up T^T.

    >>> turned = Delta(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    >>> align(turned, Delta(torch.eye(2), torch.eye(2))).up
    tensor([[1., 0.],
            [0., 1.]])
    """
    turn = rotation(delta.down, reference.down)
    turned = Delta(double(delta.up) @ turn.T, turn @ double(delta.down), delta.scale, delta.name, delta.dtype)
    return turned.cast()


def drift(down: Tensor, reference: Tensor) -> float:
    """How far a factor (r, d_in) has moved, its gauge apart: `min_T ||T down - reference||_F / ||reference||_F` over
    orthogonal T. 0 when only its gauge has changed; 0 too when both are zero."""
    distance = torch.linalg.matrix_norm(rotation(down, reference) @ double(down) - double(reference))
    size = torch.linalg.matrix_norm(double(reference))
    return float(distance / size) if size > 0 else float("inf") if distance > 0 else 0.0
