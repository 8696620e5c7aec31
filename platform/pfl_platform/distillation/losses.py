"""Losses towards targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from pfl_platform.adapters.surfaces import Keys, Mix, Tensors
from pfl_platform.distillation.targets import Targets
from pfl_platform.training.surfaces import Loss, Output, Source, Statistic, View

Tail = Literal["rest", "drop"]
"""What becomes of tokens that a target does not name: they are one further outcome together, or have probability 0."""


def divergence(
    logits: Tensor,
    probs: Tensor,
    ids: Tensor | None,
    temperature: float = 1.0,
    *,
    tail: Tail = "rest",
    reverse: bool = False,
) -> Tensor:
    """`T^2 KL(p || q)` per position, shape (P,), float32; q = softmax(logits / T), p the target.

    logits (P, vocabulary); probs (P, K) of the tokens `ids` (P, K), or of all tokens (ids None). reverse: KL(q || p).
    With `tail="rest"` all unnamed tokens count as one outcome, of p as of q, so that the divergence is 0 where both
    agree on the named ones; with "drop" p is scaled to sum 1 over the named ones.

    >>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    >>> whole = divergence(logits, torch.tensor([[0.25, 0.25, 0.25, 0.25]]), None)
    >>> round(float(whole), 4)    # 0.25 ln(0.25 / 0.5) + 0 + 2 * 0.25 ln(0.25 / 0.125)
    0.1733
    >>> named = torch.tensor([[0, 1]], dtype=torch.int32)
    >>> round(float(divergence(logits, torch.tensor([[0.25, 0.25]]), named)), 4)    # 0.25 ln 0.5 + 0.5 ln(0.5 / 0.25)
    0.1733
    >>> round(float(divergence(logits, torch.tensor([[0.25, 0.25]]), named, tail="drop")), 4)   # 0.5 ln 1 + 0.5 ln 2
    0.3466
    """
    logq = functional.log_softmax(logits.float() / temperature, dim=-1)
    p = probs.to(logq)
    if ids is not None:
        chosen = ids.to(logq.device, torch.int64)
        named = logq.gather(1, chosen)
        if tail == "rest":
            others = logq.scatter(1, chosen, -torch.inf).logsumexp(dim=1, keepdim=True)
            logq = torch.cat([named, others], dim=1)
            p = torch.cat([p, (1.0 - p.sum(dim=1, keepdim=True)).clamp_min(0.0)], dim=1)
        else:
            logq = named
    if tail == "drop":
        p = p / p.sum(dim=1, keepdim=True)
    if reverse:
        floor = torch.finfo(torch.float32).tiny
        terms = logq.exp() * (logq - p.clamp_min(floor).log())
    else:
        terms = torch.xlogy(p, p) - p * logq
    return terms.sum(dim=1) * temperature**2


def towards(
    view: View,
    output: Output,
    numbers: Mapping[str, int],
    targets: Targets,
    temperature: float = 1.0,
    *,
    tail: Tail = "rest",
    reverse: bool = False,
    samples: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`divergence` of a batch's answer tokens from their targets, one value per row, shape (rows,).

    numbers: sample id -> its number in the targets. samples: bool (S,), which samples are to be learned; None: all.
    weights: float (P,), of the positions; a position of weight 0 is still counted among the known ones.
    Rows are scaled as in `answer_loss`: their mean is the mean over all known positions of the batch.
    """
    logits, found = output.answers.float(), output.encoded.answers
    chosen = torch.tensor([numbers[sample.id] for sample in view.samples])
    ends = targets.counts.long().cumsum(0)
    begins = ends - targets.counts.long()
    at = torch.cat([torch.arange(int(begins[k]), int(ends[k])) for k in chosen.tolist()])
    if len(at) != len(logits):
        raise ValueError(f"{len(logits)} answer tokens in a batch whose targets have {len(at)}")
    known = targets.known[at]
    if samples is not None:
        known = known & torch.repeat_interleave(samples[chosen], targets.counts.long()[chosen])
    rows = found.rows
    per_row = logits.new_zeros(len(found.counts))
    if bool(known.any()):
        use, live = at[known], known.to(logits.device)
        ids = None if targets.ids is None else targets.ids[use]
        each = divergence(logits[live], targets.probs[use], ids, temperature, tail=tail, reverse=reverse)
        if weights is not None:
            each = each * weights[use].to(each)
        per_row = per_row.index_add(0, rows[live], each)
    else:
        per_row = per_row + 0.0 * logits.sum()  # nothing to learn, but a loss that has a gradient
    counts = torch.bincount(rows[known.to(rows.device)], minlength=len(found.counts))
    return per_row * output.per_supervised(counts, least=1)


def targets_under(
    mix: Mix, name: str, numbers: Mapping[str, int], temperature: float = 1.0, *, tail: Tail = "rest"
) -> Loss:
    """The loss of learning targets under a mix, `T^2 KL(targets || student)`; they are `refs` under `name`. See
    `towards`."""

    def loss(view: View) -> Tensor:
        return towards(view, view.forward(mix), numbers, Targets.read(view.refs, name), temperature, tail=tail)

    return loss


class Remaining(Statistic):
    """How far a student still is from its targets on samples that it is not trained on: the mean divergence over known
    answer tokens, sent as the scalar `<name>/mean`. The targets are `refs` under the same name."""

    def __init__(
        self, name: str, mix: Mix, data: Source, amount: int, numbers: Mapping[str, int], temperature: float, tail: Tail
    ) -> None:
        self.name, self.data, self.amount = name, data, amount
        self._mix, self._numbers, self._temperature, self._tail = mix, numbers, temperature, tail

    @property
    def keys(self) -> Keys:
        return Keys(f"{self.name}/mean")

    def add(self, acc: Any, view: View) -> tuple[float, int]:
        total, count = acc if acc is not None else (0.0, 0)
        targets = Targets.read(view.refs, self.name)
        output = view.forward(self._mix, grad=False, train=False)
        rows = towards(view, output, self._numbers, targets, self._temperature, tail=self._tail)
        ends = targets.counts.long().cumsum(0).tolist()
        chosen = [self._numbers[sample.id] for sample in view.samples]
        known = sum(int(targets.known[ends[k] - int(targets.counts[k]) : ends[k]].sum()) for k in chosen)
        return total + float(rows.mean()) * known, count + known

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        total, count = acc if acc is not None else (0.0, 0)
        return {f"{self.name}/mean": torch.tensor(total / max(1, count), dtype=torch.float64)}, {}
