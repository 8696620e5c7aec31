"""Several teachers, perhaps of other tokenizers, become one target per answer token of a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.backbones import Span
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.spans import same_places
from pfl_platform.errors import UserError

Mean = Literal["logits", "probabilities"]
NOTHING = -1
_BUDGET = 1 << 22  # numbers in a temporary


@dataclass(frozen=True)
class Answers:
    """Where the answer tokens of S samples are, as one backbone cuts them. spans: per sample, the characters of the
    rendered text that each covers."""

    spans: tuple[tuple[Span, ...], ...]

    @property
    def counts(self) -> Tensor:
        """int32 (S,)."""
        return torch.tensor([len(row) for row in self.spans], dtype=torch.int32)

    def places(self, source: Answers) -> Tensor:
        """For each of the P answer tokens here, the source's (counted over all its samples) that is predicted from the
        same text; int64 (P,), -1 for none. See `spans.same_places`."""
        if len(self.spans) != len(source.spans):
            raise UserError(f"Cannot match answers to {len(self.spans)} samples with those to {len(source.spans)}.")
        found: list[int] = []
        begun = 0
        for ours, theirs in zip(self.spans, source.spans, strict=True):
            found += [NOTHING if place == NOTHING else begun + place for place in same_places(ours, theirs)]
            begun += len(theirs)
        return torch.tensor(found, dtype=torch.int64)


@dataclass(frozen=True)
class Teacher:
    """One teacher as a student sees it. places: `Answers.places` of the student in the teacher, None where both cut
    alike. tokens: `vocabularies.between` teacher and student. weights: of the teacher at each of its own answer tokens,
    (P,), or one for all."""

    predicted: Predicted
    places: Tensor | None = None
    tokens: Tensor | None = None
    weights: Tensor | float = 1.0

    def at(self, begin: int, end: int) -> Tensor:
        """The teacher's positions for the student's `begin` to `end`, -1 for none."""
        return torch.arange(begin, end) if self.places is None else self.places[begin:end]

    def dense(self, rows: Tensor, vocabulary: int) -> Tensor:
        """Probabilities over the student's vocabulary at the given positions of the teacher, float32 (rows,
        vocabulary), sums 1. What is left beside the tokens that the teacher names is spread over all others."""
        logp = self.predicted.logp[rows].float()
        if self.predicted.ids is None:
            ids = torch.arange(logp.shape[-1]).expand_as(logp)
        else:
            ids = self.predicted.ids[rows].long()
        if self.tokens is not None:
            ids = self.tokens[ids]
        named = torch.where(ids == NOTHING, 0.0, logp.exp())
        result = logp.new_zeros(len(rows), vocabulary).scatter_add_(1, ids.clamp_min(0), named)
        others = result == 0
        rest = (1.0 - result.sum(dim=1, keepdim=True)).clamp_min(0.0)
        result = torch.where(others, rest / others.sum(dim=1, keepdim=True).clamp_min(1), result)
        return result / result.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Targets:
    """What a student learns at each of its P answer tokens. counts: int32 (S,), answer tokens per sample. probs:
    float32 (P, K), of the tokens `ids`, int32 (P, K), or of all tokens where `ids` is None; what is missing to 1 is the
    probability of all others together. known: bool (P,), False where no teacher says anything."""

    counts: Tensor
    probs: Tensor
    ids: Tensor | None
    known: Tensor

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As keys `<name>/...`."""
        parts = {"counts": self.counts, "probs": self.probs, "ids": self.ids, "known": self.known}
        return {f"{name}/{part}": value for part, value in parts.items() if value is not None}

    @staticmethod
    def read(tensors: Tensors, name: str) -> Targets:
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        return Targets(found["counts"], found["probs"], found.get("ids"), found["known"])


def own(predicted: Predicted) -> Targets:
    """A model's own predictions as targets for the same model."""
    known = torch.ones(len(predicted.logp), dtype=torch.bool)
    return Targets(predicted.counts, predicted.logp.float().exp(), predicted.ids, known)


def combined(
    teachers: Sequence[Teacher], counts: Tensor, vocabulary: int, top_k: int, mean: Mean = "logits"
) -> Targets:
    """The weighted mean of teachers at each of a student's answer tokens, over those teachers that know it.

    counts: int32 (S,), the student's answer tokens. vocabulary: logits of the student per position. top_k: tokens that
    are kept, the most probable ones; 0: all. mean: of logits, which is the normalised geometric mean of probabilities,
    or of the probabilities themselves. At a position where all weights are 0 the teachers count equally.
    """
    total = int(counts.sum())
    few = 0 < top_k < vocabulary
    step = max(1, _BUDGET // vocabulary)
    probs, ids, known = [], [], []
    for begin in range(0, total, step):
        mixed, sure = _mixed(teachers, begin, min(total, begin + step), vocabulary, mean)
        known.append(sure)
        if few:
            mixed, chosen = mixed.topk(top_k, dim=1)
            ids.append(chosen.to(torch.int32))
        probs.append(mixed)
    empty = torch.zeros(0, top_k if few else vocabulary)
    return Targets(
        counts.to(torch.int32),
        torch.cat(probs) if probs else empty,
        (torch.cat(ids) if ids else empty.to(torch.int32)) if few else None,
        torch.cat(known) if known else torch.zeros(0, dtype=torch.bool),
    )


def shares(teachers: Sequence[Teacher], begin: int, end: int) -> Tensor:
    """Weights of the teachers at the student's positions, float32 (teachers, positions): each column sums to 1, or is 0
    where nobody knows the position."""
    rows = []
    for teacher in teachers:
        at = teacher.at(begin, end)
        weights = teacher.weights
        given = weights[at.clamp_min(0)].float() if isinstance(weights, Tensor) else torch.full((len(at),), weights)
        rows.append(torch.where(at == NOTHING, torch.nan, given))
    weights = torch.stack(rows)
    there = ~weights.isnan()
    weights = weights.nan_to_num(0.0)
    sums = weights.sum(dim=0)
    weights = torch.where(sums > 0, weights, there.float())
    return weights / weights.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny)


def _mixed(teachers: Sequence[Teacher], begin: int, end: int, vocabulary: int, mean: Mean) -> tuple[Tensor, Tensor]:
    """Probabilities (positions, vocabulary), and which positions anybody knows."""
    weights = shares(teachers, begin, end)
    total = torch.zeros(end - begin, vocabulary)
    for teacher, share in zip(teachers, weights, strict=True):
        rows = torch.nonzero(share > 0)[:, 0]
        dense = teacher.dense(teacher.at(begin, end)[rows], vocabulary)
        if mean == "logits":
            dense = dense.clamp_min(torch.finfo(torch.float32).tiny).log()
        total.index_add_(0, rows, dense * share[rows].unsqueeze(1))
    return (total.softmax(dim=1) if mean == "logits" else total), weights.sum(dim=0) > 0
