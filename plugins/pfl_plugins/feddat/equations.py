"""The losses of FedDAT's two updates (mutual knowledge distillation, 2308.12305)."""

from __future__ import annotations

from torch import Tensor

from pfl_platform.backbones import IGNORE
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.surfaces import Output
from pfl_plugins.guided.equations import divergence


def at_answers(output: Output) -> Tensor:
    """The logits that predict answer tokens, without gradient, shape (answers, |V|): all that has to be kept of a pass
    for the other update. Logits of every position would be the largest tensor of a batch."""
    return output.logits.detach()[:, :-1][output.encoded.labels[:, 1:] != IGNORE]


def mutual(own: Output, teacher: Tensor, temperature: float, *, teacher_first: bool = False) -> Tensor:
    """`(CE + T^2 KL(p_own || p_teacher)) / 2` per row, shape (rows,), float32; p = softmax(logits / T).

    own: the pass that learns. teacher: `at_answers` of a pass over the same rows, a constant. The divergence is taken
    at the answer's positions; rows are scaled as those of `answer_loss`, so that the mean over rows is the mean over
    the answer tokens of the batch. With `teacher_first` it is `KL(p_teacher || p_own)`.
    """
    picked = own.encoded.labels[:, 1:] != IGNORE
    mine, theirs = own.logits[:, :-1][picked], teacher.detach()
    pair = (theirs, mine) if teacher_first else (mine, theirs)
    each = divergence(*pair, temperature, vocab_mean=False)
    sums = each.new_zeros(picked.shape[0]).index_add(0, picked.nonzero()[:, 0], each)
    return 0.5 * (answer_loss(own) + sums * own.per_supervised(picked.sum(dim=1), least=1))
