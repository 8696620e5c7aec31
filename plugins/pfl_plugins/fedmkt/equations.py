"""DualMinCE: whose predictions of which public sample are worth learning; and what they weigh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_of(losses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of several models' losses (S,), for each sample the number of the model whose loss is lowest, int64 (S,), and
    that loss. Equal losses: the first.

    >>> who, loss = best_of([torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 1.0, 2.0])])
    >>> who.tolist(), loss.tolist()
    ([0, 1, 0], [1.0, 1.0, 2.0])
    """
    stacked = torch.stack(list(losses))
    lowest = stacked.amin(dim=0)
    return (stacked == lowest).int().argmax(dim=0), lowest


def selected(received: Tensor, own: Tensor | None) -> Tensor:
    """Samples, bool (S,), of which the received predictions have the lower loss. All of them for a learner that has not
    measured its own yet.

    >>> selected(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])).tolist()
    [True, False, False]
    """
    return torch.ones(len(received), dtype=torch.bool) if own is None else received < own


def upload_bytes(tokens: int, top_k: int, vocabulary: int, samples: int) -> int:
    """What a client sends: for each answer token the `top_k` largest log-probabilities (2 bytes) and their tokens (4
    bytes), or the whole vocabulary without numbers; and one loss (4 bytes) per sample.

    >>> upload_bytes(400, 128, 32000, 80), upload_bytes(400, 0, 32000, 80)
    (307520, 25600320)
    """
    each = top_k * 6 if 0 < top_k < vocabulary else vocabulary * 2
    return tokens * each + samples * 4
