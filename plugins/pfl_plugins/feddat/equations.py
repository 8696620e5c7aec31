"""The losses of FedDAT's two updates (mutual knowledge distillation, 2308.12305)."""

from __future__ import annotations

from torch import Tensor

from pfl_platform.training.losses import answer_loss
from pfl_platform.training.surfaces import Output
from pfl_plugins.guided.equations import divergence


def mutual(own: Output, teacher: Tensor, temperature: float, *, teacher_first: bool = False) -> Tensor:
    """`(CE + T^2 KL(p_own || p_teacher)) / 2` per row, shape (rows,), float32; p = softmax(logits / T).

    own: the pass that learns. teacher: logits (answers, |V|) of a pass over the same rows, a constant. The divergence
    is taken at the answer's positions; rows are scaled as those of `answer_loss`, so that the mean over rows is the
    mean over the answer tokens of the batch. With `teacher_first` it is `KL(p_teacher || p_own)`.
    """
    mine, theirs = own.answers, teacher.detach()
    pair = (theirs, mine) if teacher_first else (mine, theirs)
    each = divergence(*pair, temperature, vocab_mean=False)
    return 0.5 * (answer_loss(own) + own.by_row(each) * own.per_supervised(own.encoded.answers.counts, least=1))
