"""How alike two adapters are: the cosine, and the share of one delta that lies in the leading subspace of another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from pfl_platform.errors import UserError, nearest
from pfl_platform.lowrank.decompose import SVD, svd, tolerance
from pfl_platform.lowrank.deltas import Delta, double, inner, norm

Space: TypeAlias = Literal["delta", "factors"]


def cosine(own: Iterable[Delta], other: Iterable[Delta], space: Space = "delta") -> float:
    """The cosine of two whole adapters, given as their deltas in the same order of modules; 0 when one is zero.

    "delta": of all entries of the dense deltas, from the factors. "factors": of all entries of up and down as they
    are, scales left out; it depends on the gauge (see `gauge`) and needs equal ranks.

    >>> plain = Delta(Tensor([[1.0], [0.0]]), Tensor([[1.0, 0.0]]))
    >>> flipped = Delta(-plain.up, -plain.down)
    >>> [round(cosine([plain], [flipped], space), 12) for space in ("delta", "factors")]
    [1.0, -1.0]
    """
    if space not in get_args(Space):
        raise UserError(f"No space of a cosine is called '{space}'.{nearest(space, get_args(Space))}")
    product, squares = 0.0, [0.0, 0.0]
    for one, two in zip(own, other, strict=True):
        if space == "delta":
            product += inner(one, two)
            squares = [squares[0] + norm(one) ** 2, squares[1] + norm(two) ** 2]
            continue
        for mine, theirs in ((one.up, two.up), (one.down, two.down)):
            if mine.shape != theirs.shape:
                raise UserError(
                    f"Factors of {tuple(mine.shape)} and {tuple(theirs.shape)} have no cosine; use the space 'delta', "
                    "which compares adapters of different rank."
                )
            a, b = double(mine).flatten(), double(theirs).flatten()
            product += float(a @ b)
            squares = [squares[0] + float(a @ a), squares[1] + float(b @ b)]
    size = math.sqrt(squares[0]) * math.sqrt(squares[1])
    return max(-1.0, min(1.0, product / size)) if size > 0 else 0.0


def leading(values: Tensor, eps: float = 0.05, near: float = 1e-10) -> int:
    """How many of the descending singular values carry all but `eps^2` of the energy (Marczak et al.,
    arXiv:2502.04959, eq. 6): the smallest k with `sum_{i > k} s_i^2 <= eps^2 sum_i s_i^2`.

    Values equal to the k-th (up to `near`, relative) are taken in as well: among equal ones the subspace of only
    some is not defined.

    >>> leading(Tensor([20.0, 1.0, 0.5]))   # the tails 1.25 and 0.25; 0.05^2 of 401.25 is about 1
    2
    >>> leading(Tensor([1, 1, 1, 1, 1, 1, 1]), eps=0.5)   # five would do, but all are equal
    7
    """
    if not 0 <= eps < 1:
        raise UserError(f"The energy left out, eps, must lie in [0, 1), not {eps}.")
    squares = double(values).square()
    tails = squares.flip(0).cumsum(0).flip(0)  # from each value to the last
    if not len(tails) or not tails[0] > 0:
        return 0
    count = int((tails > eps**2 * tails[0]).sum())
    return int((double(values) >= (1 - near) * double(values)[count - 1]).sum())


def subspace_alignment(delta: Delta, merged: Delta | SVD, eps: float = 0.05) -> float:
    """The subspace alignment ratio `||U_k U_k^T D||_F / ||D||_F` in [0, 1] (Marczak et al., arXiv:2502.04959, eq. 5).

    U_k are the left singular vectors of the *merged* delta, as many as `leading` says; D is a client's. Not symmetric.
    From factors: `||U_k^T up down||_F`. 0 when one of the two is zero. For many clients, hand in `svd(merged)` once.

    >>> merged = Delta.from_dense(Tensor([[2.0, 0.0], [0.0, 0.0]]))
    >>> subspace_alignment(Delta.from_dense(Tensor([[3.0, 0.0], [4.0, 0.0]])), merged)
    0.6
    """
    whole = merged if isinstance(merged, SVD) else svd(merged)
    if (len(whole.u), whole.vt.shape[1]) != delta.shape:
        raise UserError(
            f"{delta} is {delta.shape[0]} x {delta.shape[1]} and the merged one {len(whole.u)} x {whole.vt.shape[1]}; "
            "only deltas of the same module can be compared."
        )
    size = norm(delta)
    if size == 0:
        return 0.0
    lead = whole.u[:, : leading(whole.s, eps, tolerance(whole.precision))]
    inside = norm(Delta(lead.T @ double(delta.up), delta.down, delta.scale))
    return min(1.0, inside / size)
