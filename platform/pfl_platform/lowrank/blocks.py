"""Functions of the entries of dense deltas, a block at a time.

The only module here that writes deltas out: what works on each entry on its own (a threshold, an election of signs, a
random mask) cannot work on factors. It sees the same block of all K deltas at once, and no more than that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from scipy.linalg import eigh
from torch import Tensor

from pfl_platform.lowrank.decompose import Split, Truncation, check_adapter, svd, truncate
from pfl_platform.lowrank.deltas import Delta, alike, double, shared_precision

BUDGET = 4 * 2**20
"""Bytes of one block of all deltas. Blocks that stay in the processor's cache are several times faster than those that
do not."""

Place: TypeAlias = tuple[slice, slice]
"""Which rows and which columns of the dense delta a block holds."""

Elementwise: TypeAlias = Callable[[Tensor, Place], Tensor]
"""A block of all deltas (K, rows, columns) and its place -> the block of the result (rows, columns). Each entry of the
result depends on the same entry of the deltas (and on its place, for random masks) only. It may be called for blocks
of any form, and more than once for the same place."""


def walk(
    deltas: Iterable[Delta],
    *,
    along: Literal["rows", "columns"] = "rows",
    budget: int = BUDGET,
    dtype: torch.dtype = torch.float64,
) -> Iterator[tuple[Place, Tensor]]:
    """Blocks (K, rows, columns) of the dense deltas, from the first row to the last, each over all columns (or the
    other way round, `along` "columns"). At most `budget` bytes, though never less than one row.

    Every block is written into the same memory: use it, or change it, before the next one, and keep copies only.

    >>> two = [Delta.from_dense(torch.eye(3)), Delta.from_dense(torch.ones(3, 3))]
    >>> for (rows, _), block in walk(two, budget=2 * 2 * 3 * 8):   # two rows of two deltas, 3 columns, 8 bytes
    ...     print(rows, block.sum(dim=0).tolist())
    slice(0, 2, None) [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]
    slice(2, 3, None) [[1.0, 1.0, 2.0]]
    """
    found = alike(deltas)
    d_out, d_in = found[0].shape
    length, across = (d_out, d_in) if along == "rows" else (d_in, d_out)
    step = max(1, min(length, budget // max(1, len(found) * across * dtype.itemsize)))
    ups = [delta.scale * delta.up.detach().to(dtype) for delta in found]
    downs = [delta.down.detach().to(dtype) for delta in found]
    memory = torch.empty(len(found) * step * across, dtype=dtype, device=ups[0].device)
    for start in range(0, length, step):
        part = slice(start, min(start + step, length))
        place = (part, slice(0, d_in)) if along == "rows" else (slice(0, d_out), part)
        shape = [side.stop - side.start for side in place]
        block = memory[: len(found) * shape[0] * shape[1]].view(len(found), *shape)
        for index, (up, down) in enumerate(zip(ups, downs, strict=True)):
            torch.matmul(up[place[0]], down[:, place[1]], out=block[index])
        yield place, block


def elementwise(
    deltas: Iterable[Delta],
    function: Elementwise,
    rank: int,
    *,
    split: Split = "left",
    scale: float = 1.0,
    seed: int = 0,
    budget: int = BUDGET,
    dtype: torch.dtype = torch.float64,
    hold: bool = False,
) -> Truncation:
    """`function` of the dense deltas, truncated to an adapter's rank and scale; the result is never held as a whole.

    Two walks: the first adds up the Gram matrix of the result along its smaller side, whose `rank` leading
    eigenvectors (Householder and MRRR in float64, not iterated) are the singular vectors there; the second projects
    on them and measures what is left over. Exact, except that singular values below 1e-8 of the largest may mix.
    `hold` keeps the result between the walks, d_out x d_in numbers, so that `function` is called once per place.
    `dtype` is what blocks are computed in. `split`, `scale` and `seed` as in `truncate`.

    >>> signs_agree = lambda block, place: torch.where(block.prod(dim=0) > 0, block.sum(dim=0), 0.0)
    >>> two = [Delta.from_dense(torch.diag(torch.tensor([3.0, 1.0]))), Delta.from_dense(torch.diag(torch.ones(2)))]
    >>> shorter, error = elementwise(two, signs_agree, rank=1)
    >>> shorter.dense().tolist(), round(error, 4)   # diag(4, 2) without the 2: 2 / sqrt(20)
    ([[4.0, 0.0], [0.0, 0.0]], 0.4472)
    """
    found = alike(deltas)
    d_out, d_in = found[0].shape
    check_adapter(rank, d_in, split, scale)
    along: Literal["rows", "columns"] = "rows" if d_out >= d_in else "columns"

    def pieces() -> Iterator[Tensor]:
        """Blocks of the result, as wide as its smaller side."""
        for _, piece in _results(found, function, along, budget, dtype):
            yield piece if along == "rows" else piece.T

    held = [piece.clone() for piece in pieces()] if hold else None
    small, device = min(d_out, d_in), found[0].up.device
    total = torch.zeros(small, small, dtype=torch.float64, device=device)
    for rows in _gathered(held or pieces(), max(1, small // 8)):
        total.addmm_(rows.T, rows)
    count = min(rank, small)
    # Transposed, the symmetric matrix is in Fortran's order and is overwritten instead of copied.
    wanted = [small - count, small - 1]
    _, eigenvectors = eigh(total.cpu().numpy().T, subset_by_index=wanted, driver="evr", overwrite_a=True)
    vectors = torch.from_numpy(eigenvectors).to(device)
    projected, left_over = [], 0.0
    for piece in map(double, held or pieces()):
        projected.append(piece @ vectors)
        left_over += float((piece - projected[-1] @ vectors.T).square().sum())
    tall = Delta(torch.cat(projected), vectors.T, precision=shared_precision(found))
    kept = svd(tall if along == "rows" else tall.T)
    energy = float(kept.s.square().sum()) + left_over
    shorter = truncate(kept, rank, split=split, scale=scale, seed=seed).delta
    return Truncation(shorter, (left_over / energy) ** 0.5 if energy > 0 else 0.0)


def elementwise_dense(
    deltas: Iterable[Delta], function: Elementwise, *, budget: int = BUDGET, dtype: torch.dtype = torch.float64
) -> Tensor:
    """`function` of the dense deltas, written out: (d_out, d_in) in the dtype that came in. For who asks for a dense
    delta, and for coordinates, which have few rows."""
    found = alike(deltas)
    out = torch.empty(found[0].shape, dtype=shared_precision(found), device=found[0].up.device)
    for place, piece in _results(found, function, "rows", budget, dtype):
        out[place] = piece
    return out


def _results(
    deltas: tuple[Delta, ...],
    function: Elementwise,
    along: Literal["rows", "columns"],
    budget: int,
    dtype: torch.dtype,
) -> Iterator[tuple[Place, Tensor]]:
    for place, block in walk(deltas, along=along, budget=budget, dtype=dtype):
        piece = function(block, place)
        if piece.shape != block.shape[1:]:
            raise ValueError(f"An elementwise function made {tuple(piece.shape)} of {tuple(block.shape)}")
        yield place, piece


def _gathered(pieces: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The same rows in float64, at least so many at a time, since each product rewrites the whole Gram matrix."""
    waiting: list[Tensor] = []
    for piece in pieces:
        waiting.append(piece.to(torch.float64, copy=True))
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)
