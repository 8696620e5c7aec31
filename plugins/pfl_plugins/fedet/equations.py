"""The consensus of unlike clients, and those who disagree with it, at each answer token of a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pfl_platform.distillation.targets import NOTHING, Targets, Teacher, combined


def consensus(teachers: Sequence[Teacher], counts: Tensor, vocabulary: int) -> Targets:
    """The pseudo-label `argmax_v sum_k alpha_k z_k(v)` as a target of one token with probability 1.

    alpha_k are the teachers' weights (their logits' variance over the vocabulary), scaled to sum 1 at each position.
    """
    found = combined(teachers, counts, vocabulary, 1)
    ids = found.ids if found.ids is not None else found.probs.argmax(dim=1, keepdim=True).to(torch.int32)
    return Targets(found.counts, torch.ones(len(ids), 1), ids, found.known)


def disagreeing(teacher: Teacher, label: Tensor) -> Teacher:
    """The teacher at those of the student's P positions where its own most probable token is not the pseudo-label
    (P,), and nowhere else."""
    at = teacher.at(0, len(label))
    predicted = teacher.predicted
    first = predicted.logp.argmax(dim=1) if predicted.ids is None else predicted.ids[:, 0].long()
    own = first if teacher.tokens is None else teacher.tokens[first]
    differs = (at != NOTHING) & (own[at.clamp_min(0)] != label.long())
    return replace(teacher, places=torch.where(differs, at, NOTHING))


def diversity(teachers: Sequence[Teacher], agreed: Targets, vocabulary: int, top_k: int) -> tuple[Targets, Tensor]:
    """The weighted mean of the logits of those who disagree, over the same positions as the consensus; and where
    anybody does, float32 (P,), 1 or 0."""
    assert agreed.ids is not None
    label = agreed.ids[:, 0]
    found = combined([disagreeing(teacher, label) for teacher in teachers], agreed.counts, vocabulary, top_k)
    return replace(found, known=agreed.known), found.known.float()
