"""Losses that methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pfl_platform.adapters.surfaces import Mix
from pfl_platform.backbones import IGNORE
from pfl_platform.training.surfaces import Loss, Output, View


def answer_loss(output: Output) -> Tensor:
    """Cross-entropy of the answer tokens, one value per row, shape (rows,), float32.

    Rows are scaled so that their mean is the mean over all supervised tokens of the micro-batch, which is the usual
    loss of causal language models: row_i = rows * sum_i / tokens. A row that has a value instead of an answer (see
    `Encoded`) counts as one token, whose loss is the squared error of its first logit.
    """
    labels = output.encoded.labels[:, 1:]
    logits = output.logits[:, :-1]
    picked = labels != IGNORE
    losses = functional.cross_entropy(logits[picked].float(), labels[picked], reduction="none")
    per_row = losses.new_zeros(labels.shape[0]).index_add(0, picked.nonzero()[:, 0], losses)
    supervised = picked.sum(dim=1)
    values = output.encoded.values
    if values is not None:
        rated = (~values.isnan()).nonzero()[:, 0]
        errors = (logits[rated, 0, 0].float() - values[rated]).square()
        per_row = per_row.index_add(0, rated, errors)
        supervised = supervised.index_add(0, rated, torch.ones_like(rated))
    return per_row * output.per_supervised(supervised)


def answers_under(mix: Mix, *, dropout: bool = True) -> Loss:
    """The loss of predicting the answers under a mix. For what is measured and not trained, dropout is not wanted."""

    def loss(view: View) -> Tensor:
        return answer_loss(view.forward(mix, train=dropout))

    return loss
