"""How similar the layers of two backbones are: linear CKA over the same samples, in batches.

Kornblith et al. 2019 compare two sets of representations of the same n samples by their centred kernels. Nguyen et al.
2021 (Eq. 4) replace HSIC by its unbiased estimate and average it over batches, so that n may be any size and memory
holds one batch: kernels of one batch per layer, and three tables of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample
from pfl_platform.errors import UserError

At = Literal["mean", "last"]
"""What stands for a sample in a layer: the mean over its tokens without padding, or its last token."""

SMALLEST = 4
"""Samples in a batch at least: the unbiased estimate divides by n - 3."""


def kernels(layers: Sequence[Tensor]) -> Tensor:
    """Linear kernels X X^T of representations (n, d), with zeros on the diagonal; float64 (layers, n, n)."""
    grams = torch.stack([x.double() @ x.double().T for x in layers])
    return grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))


def hsic(left: Tensor, right: Tensor) -> Tensor:
    """Unbiased HSIC of every pair of kernels (Song et al. 2012, Eq. 5).

    left: (a, n, n), right: (b, n, n), symmetric, with zeros on the diagonal, n >= 4. Returns (a, b).

    >>> k = kernels([torch.tensor([[0.0], [1.0], [2.0], [4.0]])])
    >>> round(float(hsic(k, k)), 4)
    4.6667
    """
    n = left.shape[-1]
    traces = torch.einsum("aij,bij->ab", left, right)
    rows = left.sum(-1) @ right.sum(-1).T
    sums = torch.outer(left.sum((-1, -2)), right.sum((-1, -2)))
    return (traces + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


@dataclass
class Cka:
    """Sums of HSIC over batches, for all pairs of layers of two models."""

    _cross: Tensor | None = field(default=None, repr=False)
    _own: list[Tensor] = field(default_factory=list, repr=False)

    def add(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
        """Representations of one batch: per layer (n, d_layer), the same n samples everywhere."""
        k, m = kernels(left), kernels(right)
        own = [torch.stack([hsic(one[None], one[None])[0, 0] for one in side]) for side in (k, m)]
        cross = hsic(k, m)
        self._cross = cross if self._cross is None else self._cross + cross
        self._own = own if not self._own else [a + b for a, b in zip(self._own, own, strict=True)]

    def table(self) -> Tensor:
        """CKA of every pair, float64 (left layers, right layers); at most 1, and near 0 for unrelated layers."""
        if self._cross is None:
            raise ValueError("no batch was added")
        left, right = (side.clamp(min=0).sqrt() for side in self._own)
        return self._cross / torch.outer(left, right).clamp(min=torch.finfo(torch.float64).tiny)


def left_over(count: int, batch_size: int) -> int:
    """How many of `count` samples are in a last batch that is too small for the estimate.

    >>> left_over(7, 4), left_over(8, 4), left_over(12, 8)
    (3, 0, 0)
    """
    rest = count % batch_size
    return rest if rest < SMALLEST else 0


def layer_similarity(
    left: Backbone,
    right: Backbone,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    at: At = "mean",
    say: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """CKA of every layer of one backbone with every layer of another on the same questions, float64 (layers, layers).

    A last batch that is too small for the estimate is left out. `say` hears how many samples are done.
    """
    if at not in get_args(At):
        raise UserError(f"A sample is represented by its {' or its '.join(get_args(At))}, not by '{at}'.")
    if batch_size < SMALLEST or len(samples) < SMALLEST:
        raise UserError(
            f"CKA needs batches of at least {SMALLEST} samples; here are {len(samples)} in batches of {batch_size}."
        )
    sums = Cka()
    for start in range(0, len(samples) - left_over(len(samples), batch_size), batch_size):
        batch = samples[start : start + batch_size]
        sums.add(representations(left, batch, at), representations(right, batch, at))
        say(start + len(batch))
    return sums.table()


@torch.no_grad()
def representations(backbone: Backbone, samples: Sequence[Sample], at: At) -> list[Tensor]:
    """What leaves each block for a batch of questions, a vector per sample: per layer float32 (n, d) on the CPU."""
    inputs = backbone.codec.encode(samples, answers=False).to(backbone.device).inputs
    with _leaving(backbone) as seen:
        backbone.model(**inputs)
    mask = inputs.get("attention_mask")
    return [_vector(seen[path], mask, at).float().cpu() for path in backbone.blocks]


def _vector(hidden: Tensor, mask: Tensor | None, at: At) -> Tensor:
    """(n, positions, d) to (n, d). Where pictures have made rows longer than the mask, every position counts."""
    if mask is None or mask.shape != hidden.shape[:2]:
        mask = hidden.new_ones(hidden.shape[:2])
    if at == "last":
        last = (mask.cumsum(-1) * mask).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


@contextmanager
def _leaving(backbone: Backbone) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[path] = output if isinstance(output, Tensor) else output[0]

        return hook

    with ExitStack() as stack:
        for path in backbone.blocks:
            stack.callback(backbone.module(path).register_forward_hook(keep(path)).remove)
        yield seen


def straightness(table: Tensor) -> float:
    """How far similar layers lie at the same relative depth: 1 minus the mean distance in relative depth (0 to 1)
    between each layer and the one most similar to it, counted from both sides.

    >>> straightness(torch.eye(5)), straightness(torch.eye(5).flip(0))
    (1.0, 0.4)
    """
    rows, columns = table.shape
    far = []
    for side, (count, other) in ((table, (rows, columns)), (table.T, (columns, rows))):
        best = side.argmax(1).double() / max(1, other - 1)
        depth = torch.arange(count, dtype=torch.float64) / max(1, count - 1)
        far.append((best - depth).abs())
    return round(float(1 - torch.cat(far).mean()), 6)
