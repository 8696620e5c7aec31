"""Where A begins: the directions in which other clients' features have the least energy (Eq. 2 and 3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.lowrank.decompose import completion, svd
from pfl_platform.lowrank.deltas import Delta, double, root


def quietest(rows: Tensor, rank: int, seed: int, tol: float = 1e-6) -> Tensor:
    """`argmin_A ||A H^T||_F` subject to `A A^T = I`, shape (rank, d_in), float64; H = rows (n, d_in).

    The minimum is the sum of the `rank` smallest eigenvalues of `H^T H` (uncentred). Below n < d_in it is usually zero,
    and any orthonormal set outside the row space of H attains it: a seeded Gaussian is projected there and
    orthonormalised, so that the choice does not depend on a machine. Where fewer than `rank` such directions are left,
    all are taken, and of the row space those with the smallest eigenvalues. Singular values of H up to `tol`, relative
    to the largest, count as zero.

    >>> found = quietest(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), 2, seed=0)
    >>> found.abs().round().tolist()   # first what is free, then the quieter of the two rows
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    width = rows.shape[1]
    if not 1 <= rank <= width:
        raise UserError(f"An A with {width} inputs has from 1 to {width} rows, not {rank}.")
    heard = svd(Delta.from_dense(double(rows)), tol).vt  # (rank of H, d_in), largest singular value first
    free = min(rank, width - len(heard))
    parts = [completion(heard, free, seed)] if free else []
    if free < rank:
        parts.append(heard.flip(0)[: rank - free])
    return torch.cat(parts)


def stacked(parts: Iterable[Tensor]) -> Tensor:
    """Rows of several clients, (n, d_in) each, below each other, float64. One with more rows than inputs is replaced by
    its triangle R, since only `H^T H = R^T R` counts."""
    return torch.cat([root(double(part)) for part in parts])


def loudness(down: Tensor, rows: Tensor) -> float:
    """`||A H^T||_F^2`, what Eq. 2 minimises.

    >>> loudness(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 5.0], [4.0, 5.0]]))
    25.0
    """
    return float((double(down) @ double(rows).T).square().sum())
