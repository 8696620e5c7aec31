"""Losses that methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pfl_platform.adapters.surfaces import Mix
from pfl_platform.training.surfaces import Loss, Output, View

LARGEST = 1 << 24
"""Logits of which a loss holds float32 copies at a time: 64 MiB each."""


def answer_loss(output: Output) -> Tensor:
    """Cross-entropy of the answer tokens, one value per row, shape (rows,), float32.

    Rows are scaled so that their mean is the mean over all supervised tokens of the micro-batch, which is the usual
    loss of causal language models: row_i = rows * sum_i / tokens. A row that has a value instead of an answer (see
    `Encoded`) counts as one token, whose loss is the squared error of its first logit.
    """
    encoded = output.encoded
    per_row = output.by_row(token_losses(output.answers, encoded.answers.tokens))
    supervised, values = encoded.answers.counts, encoded.values
    if values is not None:
        rated = (~values.isnan()).nonzero()[:, 0]
        errors = (output.logits[rated, 0, 0].float() - values[rated]).square()
        per_row = per_row.index_add(0, rated, errors)
        supervised = supervised.index_add(0, rated, torch.ones_like(rated))
    return per_row * output.per_supervised(supervised)


def token_losses(logits: Tensor, tokens: Tensor, largest: int = LARGEST) -> Tensor:
    """Cross-entropy of each token, (P,), float32, from logits (P, vocabulary) of any precision.

    What it makes of the logits in float32 has at most `largest` entries at a time: of more, a part after the other is
    taken, and taken again on the way back.
    """
    size = max(1, largest // max(1, logits.shape[1]))
    if len(logits) <= size:
        return _token_losses(logits, tokens)
    parts = zip(torch.split(logits, size), torch.split(tokens, size), strict=True)
    return torch.cat([checkpoint(_token_losses, *part, use_reentrant=False) for part in parts])


def _token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), tokens, reduction="none")


def answers_under(mix: Mix, *, dropout: bool = True) -> Loss:
    """The loss of predicting the answers under a mix. For what is measured and not trained, dropout is not wanted."""

    def loss(view: View) -> Tensor:
        return answer_loss(view.forward(mix, train=dropout))

    return loss
