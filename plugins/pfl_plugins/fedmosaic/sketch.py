"""The gradient of a frozen model's last layer, without a backward pass (FedMosaic, Eq. 1).

A decoder ends in `h = rest + W u`, `logits = head(norm(h))`, where W is the last block's output projection
(`down_proj`), u its input, and `norm` an RMSNorm. So dL/dW = sum over positions of (dL/dh) u^T, and dL/dh follows from
the logits by hand: softmax minus the one-hot label, through the head, through the Jacobian of the norm. One forward
pass that keeps h and u is all it takes.
"""

from __future__ import annotations

import itertools
from typing import Literal, get_args

import torch
from torch import Tensor

from pfl_platform.backbones import IGNORE
from pfl_platform.errors import UserError, nearest

Jacobian = Literal["exact", "official_approx"]
Reduction = Literal["tokens", "rows", "sum"]

_BUDGET = 1 << 23  # numbers in the largest temporary (logits of a chunk of the vocabulary, or a block of the gradient)


def head_gradient(
    normed: Tensor, targets: Tensor, head_weight: Tensor, head_bias: Tensor | None = None, *, budget: int = _BUDGET
) -> Tensor:
    """d(cross-entropy)/d(input of the head) of each token: `(softmax(z) - onehot(y)) @ W_head`, (n, d).

    normed: (n, d), float32 or float64; all sums are made in this dtype. targets: int64 (n,). head_weight: (V, d), any
    floating dtype, tied to the embedding or not; it is only read. head_bias: (V,) or None.

    The softmax runs over chunks of the vocabulary in one pass: the sums are kept relative to the largest logit so
    far, and scaled down when a larger one turns up. At most `budget` logits exist at a time.
    """
    tokens, width = normed.shape
    vocabulary = head_weight.shape[0]
    step = min(vocabulary, max(1, budget // max(tokens, width, 1)))
    peak = normed.new_full((tokens, 1), -torch.inf)
    mass = normed.new_zeros(tokens, 1)
    expected = torch.zeros_like(normed)  # sum over the vocabulary of exp(z - peak) * row of the head
    for begin in range(0, vocabulary, step):
        rows = head_weight[begin : begin + step].to(normed.dtype)
        logits = normed @ rows.T
        if head_bias is not None:
            logits += head_bias[begin : begin + step].to(normed.dtype)
        higher = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
        shrink = torch.exp(peak - higher)
        weights = logits.sub_(higher).exp_()
        mass = mass * shrink + weights.sum(dim=1, keepdim=True)
        expected = expected * shrink + weights @ rows
        peak = higher
    return expected / mass - head_weight[targets].to(normed.dtype)


def norm_gradient(hidden: Tensor, weight: Tensor, eps: float, upstream: Tensor, jacobian: Jacobian = "exact") -> Tensor:
    """Gradient at the input of an RMSNorm from the gradient at its output, (n, d).

    The norm is `y_i = w_i s h_i` with `s = (mean(h^2) + eps)^(-1/2)`: `dy_i/dh_k = w_i (s [i = k] - s^3 h_i h_k / d)`.
    hidden, upstream: (n, d), float32 or float64. weight: (d,), the factor that multiplies (for families that store it
    minus one: plus one).

    jacobian: "exact" applies the rank-one term h h^T; "official_approx", as the published code, only its diagonal.
    """
    upstream = upstream * weight.to(upstream.dtype)
    width = hidden.shape[-1]
    s = torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + eps)
    if jacobian == "exact":
        along = (hidden * upstream).sum(dim=-1, keepdim=True) * hidden
    else:
        along = hidden.square() * upstream
    return s * upstream - along * s**3 / width


def token_weights(labels: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """Which positions predict a supervised token, and how much each counts in the loss.

    labels: int64 (rows, T), at each token's own position; position t predicts the label at t + 1. Returns the mask,
    bool (rows, T - 1), and the weights of the positions it chooses, float64, in row-major order: "tokens" 1 / number of
    all supervised tokens, "rows" a mean over rows of the mean over a row's tokens (rows without any are left out),
    "sum" 1.
    """
    mask = labels[:, 1:] != IGNORE
    counts = mask.sum(dim=1)
    if reduction == "sum":
        per_row = torch.ones_like(counts, dtype=torch.float64)
    elif reduction == "tokens":
        per_row = torch.full_like(counts, 1, dtype=torch.float64) / counts.sum().clamp(min=1)
    else:
        per_row = 1.0 / (counts.clamp(min=1).double() * (counts > 0).sum().clamp(min=1))
    return mask, torch.repeat_interleave(per_row, counts)


def last_layer_gradient(
    hidden: Tensor,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm_weight: Tensor,
    eps: float,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    jacobian: Jacobian = "exact",
    reduction: Reduction = "tokens",
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
    coordinates: Tensor | None = None,
    budget: int = _BUDGET,
) -> Tensor:
    """dL/dW of the last block's output projection W (d, d_ff), L the next-token cross-entropy.

    hidden: (rows, T, d), the hidden state before the final norm (the last block's output).
    inputs: (rows, T, d_ff), the input of W in the same pass.
    labels: int64 (rows, T), -100 where nothing is supervised, at each token's own position; the shift happens here.
    norm_weight, eps: the final RMSNorm. head_weight (V, d), head_bias (V,) or None: the output head.
    jacobian: see `norm_gradient`. reduction: see `token_weights`; "tokens" is the loss that transformers computes.
    dtype: in which everything is computed, from inputs of any floating dtype.
    rows: only the first so many output rows, shape (rows, d_ff). coordinates: only these entries of the flattened
        gradient (sorted, int32 or int64), shape (len(coordinates),), without ever holding the rest.
    budget: bound on the size of temporaries, in numbers.

    A batch without a supervised token has a zero gradient. Only supervised positions cost anything: per token 2 V d
    multiplications for the head and d d_ff for the product. Raises `UserError` for an unknown option.
    """
    for option, value, choices in (("jacobian", jacobian, Jacobian), ("reduction", reduction, Reduction)):
        if value not in get_args(choices):
            raise UserError(f"Last-layer gradient: {option} cannot be '{value}'.{nearest(value, get_args(choices))}")
    with torch.no_grad():
        labels = labels.to(hidden.device)
        mask, weights = token_weights(labels, reduction)
        h = hidden[:, :-1][mask].to(dtype)
        u = inputs[:, :-1][mask].to(dtype)
        scale = torch.rsqrt(h.square().mean(dim=-1, keepdim=True) + eps)
        at_head = head_gradient(
            h * scale * norm_weight.to(dtype), labels[:, 1:][mask], head_weight, head_bias, budget=budget
        )
        at_head *= weights.to(at_head).unsqueeze(-1)
        at_hidden = norm_gradient(h, norm_weight, eps, at_head, jacobian)
        if rows is not None:
            at_hidden = at_hidden[:, :rows]
        if coordinates is None:
            return at_hidden.T @ u
        return _entries(at_hidden, u, coordinates.to(u.device), budget)


def _entries(left: Tensor, right: Tensor, coordinates: Tensor, budget: int) -> Tensor:
    """The chosen entries, sorted, of `left.T @ right` flattened: one block of rows at a time."""
    height, width = left.shape[1], right.shape[1]
    step = max(1, budget // width)
    out = right.new_empty(len(coordinates))
    edges = torch.arange(0, height + step, step, device=coordinates.device).clamp(max=height) * width
    cuts = torch.searchsorted(coordinates, edges.to(coordinates.dtype)).tolist()
    for block, (begin, end) in enumerate(itertools.pairwise(cuts)):
        if begin == end:
            continue
        row = block * step
        part = left[:, row : row + step].T @ right
        out[begin:end] = part.flatten().index_select(0, coordinates[begin:end] - row * width)
    return out
