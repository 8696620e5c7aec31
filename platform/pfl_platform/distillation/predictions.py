"""What a model predicts at the answer tokens of fixed samples, as few numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from pfl_platform.adapters.surfaces import Keys, Mix, Tensors
from pfl_platform.training.losses import token_losses
from pfl_platform.training.surfaces import Output, Planned, Source, Statistic, View

NAME = "predictions"


@dataclass(frozen=True)
class Predicted:
    """A model's predictions over P answer tokens of S samples, in the order of samples and positions.

    counts: int32 (S,), answer tokens of each sample. losses: float32 (S,), mean cross-entropy of each sample's answer
    tokens, at temperature 1. logp: (P, K), log-probabilities at the temperature asked for, largest first, of the tokens
    `ids`, int32 (P, K); of all tokens in their order where `ids` is None. variance: float32 (P,), of all logits at a
    position over the vocabulary.
    """

    counts: Tensor
    losses: Tensor
    logp: Tensor
    ids: Tensor | None
    variance: Tensor | None

    @staticmethod
    def read(tensors: Tensors, name: str = NAME) -> Predicted:
        """From the keys `<name>/...` that the statistic sends."""
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        return Predicted(found["counts"], found["losses"], found["logp"], found.get("ids"), found.get("variance"))


class Predictions(Statistic):
    """A forward pass over samples that keeps, for each answer token, the `top_k` most probable tokens (0: all).

    data: samples in a fixed order, all of which are seen once in `amount` batches. dtype: of the log-probabilities.
    variance: whether the logits' variance is wanted. keep: parts (`losses` ...) that the actor keeps in its state.
    samples: how many a plan reckons with; 0: nobody knows, and a plan says so. The sum of a position's probabilities
    may be below 1: the rest belongs to the other tokens.
    """

    by_sample = True

    def __init__(
        self,
        mix: Mix,
        data: Source,
        amount: int,
        *,
        top_k: int,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        variance: bool = False,
        keep: tuple[str, ...] = (),
        name: str = NAME,
        samples: int = 0,
    ) -> None:
        self._samples = samples
        self.name, self.data, self.amount = name, data, amount
        self._mix, self._top_k, self._temperature = mix, top_k, temperature
        self._dtype, self._variance, self._keep = dtype, variance, keep

    @property
    def keys(self) -> Keys:
        return Keys(f"{self.name}/*")

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        if not self._samples:
            return {}
        backbone = plan.load(None)
        vocabulary = cast(Tensor, backbone.module(backbone.head).weight).shape[0]
        tokens, kept = self._samples * plan.answers, min(self._top_k or vocabulary, vocabulary)
        found = {
            "counts": plan.tensor(self._samples, dtype=torch.int32),
            "losses": plan.tensor(self._samples),
            "logp": plan.tensor(tokens, kept, dtype=self._dtype),
        }
        if kept < vocabulary:
            found["ids"] = plan.tensor(tokens, kept, dtype=torch.int32)
        if self._variance:
            found["variance"] = plan.tensor(tokens)
        return {f"{self.name}/{part}": value for part, value in found.items()}

    def add(self, acc: Any, view: View) -> dict[str, list[Tensor]]:
        parts: dict[str, list[Tensor]] = acc if acc is not None else {}
        for part, value in self._look(view.forward(self._mix, grad=False, train=False)).items():
            parts.setdefault(part, []).append(value.cpu())
        return parts

    def _look(self, output: Output) -> dict[str, Tensor]:
        logits, answers = output.answers.float(), output.encoded.answers
        per_row = output.by_row(token_losses(logits, answers.tokens)) / answers.counts.clamp(min=1)
        logp = functional.log_softmax(logits / self._temperature, dim=-1)
        found = {"counts": answers.counts.to(torch.int32), "losses": per_row}
        if 0 < self._top_k < logp.shape[-1]:
            logp, ids = logp.topk(self._top_k, dim=-1)
            found["ids"] = ids.to(torch.int32)
        found["logp"] = logp.to(self._dtype)
        if self._variance:
            found["variance"] = logits.var(dim=-1, correction=0)
        return found

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        sent = {f"{self.name}/{part}": torch.cat(values) for part, values in (acc or {}).items()}
        return sent, {key: value for key, value in sent.items() if key.rpartition("/")[2] in self._keep}
