"""The equations of FedMosaic (Seo et al., ICLR 2026), one pure function each.

No function here knows of clients, messages or models. Where the paper and its published code differ, the paper's
reading is the default and the other is an option whose name starts with `official`. Symbols: N clients, d coordinates
of the gradient, r the rank, d_in and d_out the sides of an adapted module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pfl_platform.errors import UserError, nearest
from pfl_platform.rng import numpy_rng

EmaStart = Literal["copy", "zeros"]
Subsample = Literal["random", "official_rows"]
Similarity = Literal["flat", "official_columns"]

_CHUNK = 1 << 19  # coordinates handled at a time, so that a pass over a long gradient needs little memory


def _known(option: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise UserError(f"FedMosaic's option {option} cannot be '{value}'.{nearest(value, get_args(choices))}")


def ema(previous: Tensor | None, gradient: Tensor, alpha: float, start: EmaStart = "copy") -> Tensor:
    """Eq. 2: the decayed gradient, `(1 - alpha) * previous + alpha * gradient`.

    previous, gradient: any equal shape and floating dtype; `previous` is None in a client's first round.
    start: "copy" takes the first gradient as it is (published code); "zeros" starts from a zero vector (Alg. 1), which
        only scales the first one and leaves every cosine of that round as it was.

    >>> ema(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), alpha=0.25)
    tensor([1.5000, 1.0000])
    """
    _known("ema_start", start, EmaStart)
    if not 0 < alpha <= 1:
        raise UserError(f"FedMosaic's EMA ratio alpha must lie in (0, 1], not {alpha}.")
    if previous is None:
        return gradient.clone() if start == "copy" else alpha * gradient
    return torch.lerp(previous, gradient, alpha)


def _kept(total: int, fraction: float) -> int:
    """How many of `total` a fraction keeps: rounded down, at least one."""
    if not 0 < fraction <= 1:
        raise UserError(f"The fraction of the gradient that is kept must lie in (0, 1], not {fraction}.")
    return max(1, math.floor(total * fraction + 1e-9))


def kept_rows(rows: int, fraction: float) -> int:
    """How many leading output rows the published code keeps: 819 of 2048 at a fraction of 0.4.

    >>> kept_rows(2048, 0.4)
    819
    """
    return _kept(rows, fraction)


def kept_coordinates(size: int, fraction: float, seed: int) -> Tensor:
    """Eq. 3's mask M as sorted indices, int32 (int64 from 2^31 on), shape (floor(fraction * size),).

    A uniformly random subset; the seed alone decides it, so all clients and the server hold the same one without
    sending it. Drawn chunk by chunk: how many fall into a chunk is hypergeometric, which ones is a permutation of the
    chunk. This is exactly a draw without replacement and needs no array of length `size`.

    >>> kept_coordinates(10, 0.4, seed=0).shape
    torch.Size([4])
    """
    rng = numpy_rng(seed, "fedmosaic", "kept coordinates")
    dtype = torch.int32 if size < 2**31 else torch.int64
    out = torch.empty(_kept(size, fraction), dtype=dtype)
    done = 0
    for begin in range(0, size, _CHUNK):
        length = min(_CHUNK, size - begin)
        rest, wanted = size - begin, len(out) - done
        here = wanted if rest == length else int(rng.hypergeometric(length, rest - length, wanted)) if wanted else 0
        chosen = torch.from_numpy(rng.permutation(length)[:here])
        out[done : done + here] = chosen.sort().values + begin
        done += here
    return out


def sanitise(gradient: Tensor, indices: Tensor, mu: float, rng: torch.Generator) -> Tensor:
    """Eq. 3: the kept coordinates of `gradient + mu * noise`, noise from N(0, I). Shape (len(indices),).

    gradient: floating, any shape, read in row-major order. indices: int32 or int64, 1-d. Noise is drawn for the kept
    coordinates only; those that are dropped never leave, so the law of what is sent is the same. No clipping norm goes
    with it: this is not differential privacy.
    """
    kept = gradient.flatten().index_select(0, indices)
    noise = torch.randn(kept.shape, generator=rng, dtype=kept.dtype, device=rng.device)
    return kept + mu * noise.to(kept.device)


def cosine_matrix(
    vectors: Sequence[Tensor],
    similarity: Similarity = "flat",
    rows: int | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """S of Eq. 4: cosine of each pair of clients' vectors, (N, N), float64, symmetric.

    vectors: N tensors of equal length d, floating. Computed in float64, a chunk of coordinates at a time.
    similarity: "flat" is the cosine of the whole vectors; the diagonal is 1, and a zero vector is orthogonal to all
        others. "official_columns" reads each vector as a (rows, d / rows) matrix, takes the cosine of each column with
        the same column of the other client, and averages over columns (a zero column counts as 0).

    Raises `UserError` when lengths differ or a vector is not finite; `names` says whose it is.

    >>> cosine_matrix([torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])])
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]], dtype=torch.float64)
    """
    _known("similarity", similarity, Similarity)
    size = vectors[0].numel()
    for i, vector in enumerate(vectors):
        if vector.numel() != size:
            raise UserError(f"Gradient {i} has {vector.numel()} values and gradient 0 has {size}: all must be equal.")
        if not vector.isfinite().all():
            whose = f"Gradient {i}" if names is None else f"The gradient of client '{names[i]}'"
            raise UserError(f"{whose} is not finite, so no relevance can be computed from it.")
    if similarity == "official_columns":
        return _column_cosines([vector.reshape(_rows(rows, size), -1) for vector in vectors])
    flat = [vector.flatten() for vector in vectors]
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for begin in range(0, size, _CHUNK):
        part = torch.stack([vector[begin : begin + _CHUNK] for vector in flat]).double()
        gram += part @ part.T
    cosines = _cosines(gram)
    return cosines.fill_diagonal_(1.0)


def _rows(rows: int | None, size: int) -> int:
    if rows is None or rows < 1 or size % rows:
        raise UserError(
            f"similarity 'official_columns' reads a gradient as a matrix, but {size} values do not make {rows} rows: "
            "use it with subsample 'official_rows'."
        )
    return rows


def _cosines(gram: Tensor) -> Tensor:
    """Gram matrices (..., N, N) -> cosines; 0 where a vector is zero."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    product = norm.unsqueeze(-1) * norm.unsqueeze(-2)
    cosines = torch.where(product > 0, gram / product, 0.0).clamp(-1.0, 1.0)
    return (cosines + cosines.transpose(-2, -1)) / 2


def _column_cosines(matrices: Sequence[Tensor]) -> Tensor:
    rows, cols = matrices[0].shape
    total = torch.zeros(len(matrices), len(matrices), dtype=torch.float64)
    step = max(1, _CHUNK // rows)
    for begin in range(0, cols, step):
        part = torch.stack([matrix[:, begin : begin + step] for matrix in matrices]).double()
        total += _cosines(torch.einsum("nkc,mkc->cnm", part, part)).sum(dim=0)
    return total / cols


def relevance_weights(similarities: Tensor, tau: float, include_self: bool = True) -> Tensor:
    """Eq. 4: `w_ij = softmax_j(S_ij / tau)`, (N, N), float64, rows sum to 1.

    include_self: the paper's sum runs over all clients. Without it (published code) w_ii = 0; a lone client, who has
        nobody else, keeps weight 1 for itself.

    >>> weights = relevance_weights(torch.eye(2), tau=0.5)   # e^2 against e^0
    >>> round(weights[0, 0].item(), 4), round(math.exp(2) / (math.exp(2) + 1), 4)
    (0.8808, 0.8808)
    """
    if tau <= 0:
        raise UserError(f"FedMosaic's temperature tau must be positive, not {tau}.")
    logits = similarities.double() / tau
    if not include_self and len(logits) > 1:
        logits = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -math.inf)
    return logits.softmax(dim=-1)


def renormalised(weights_row: Tensor, allowed: Sequence[int], own: int) -> Tensor:
    """One client's weights restricted to the clients with the same backbone, and scaled to sum to 1. Shape (N,).

    weights_row: (N,), row i of Eq. 4. allowed: indices of the clients that sent an update and share the backbone.
    own: the client's own index. When nobody allowed has weight (a client alone in its type while self is excluded, or
    no partner present this round) all weight goes to the client's own update.

    >>> renormalised(torch.tensor([0.2, 0.2, 0.6]), allowed=[0, 2], own=0)
    tensor([0.2500, 0.0000, 0.7500])
    """
    chosen = torch.zeros_like(weights_row)
    index = torch.tensor(sorted(set(allowed)), dtype=torch.int64)
    chosen[index] = weights_row[index]
    total = chosen.sum()
    if total <= 0:
        return torch.nn.functional.one_hot(torch.tensor(own), len(weights_row)).to(weights_row.dtype)
    return chosen / total


def pq_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, p: Tensor, q: Tensor, b: Tensor, scale: float = 1.0
) -> Tensor:
    """Eq. 5: `W x + bias + scale * B (P A x + Q)`; the published code's scale is alpha / r.

    x (..., d_in), weight (d_out, d_in), bias (d_out,) or None, A (r, d_in), P (r, r), Q (r,), B (d_out, r) -> (...,
    d_out). Written for reading and as a reference in tests; training uses the layers of `pqlora`.
    """
    out = x @ weight.T + scale * ((x @ a.T @ p.T + q) @ b.T)
    return out if bias is None else out + bias


def mix(base: Tensor, local: Tensor, global_: Tensor, beta: float | Tensor) -> Tensor:
    """Eq. 7: `base + (1 - sigmoid(beta)) * local + sigmoid(beta) * global`; beta 0 weighs both by one half.

    base, local, global_: outputs of one module, (..., d_out), of the last two without the base's share.

    >>> mix(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0]), 0.0)
    tensor([4.])
    """
    share = torch.sigmoid(torch.as_tensor(beta, dtype=base.dtype))
    return base + (1 - share) * local + share * global_


def upload_values(shapes: Iterable[tuple[int, int]], rank: int, pq_modules: int, gradient_values: int = 0) -> int:
    """How many numbers a client sends up: `sum r (d_in + d_out) + pq_modules * (r^2 + r) + gradient_values`.

    shapes: (d_in, d_out) of every conventional LoRA module. pq_modules: number of PQ-LoRA modules (blocks times
    modules per layer). gradient_values: kept coordinates, 0 when no gradient is sent. Bytes are this times the width
    of a number. The way down has the same first two terms, the first only when another client shares the backbone.

    >>> upload_values([(64, 64), (64, 256)], rank=4, pq_modules=2, gradient_values=10)   # 4*128 + 4*320 + 2*20 + 10
    1842
    """
    conventional = sum(rank * (d_in + d_out) for d_in, d_out in shapes)
    return conventional + pq_modules * (rank * rank + rank) + gradient_values
