"""Hidden words: how the tiny encoder learns the language before it learns to choose.

A question of the text corpus and its answer stand in one text, of which a quarter of the tokens is hidden. So the
encoder learns which words go together, to copy, and to answer, from many tokens of a row at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pfl_benchmarks.drake_synth.stories import TextCorpus
from pfl_platform.data import Sample, Turn
from pfl_platform.rng import torch_rng
from pfl_platform.training.surfaces import Loss, View

SHARE = 0.25
"""Share of tokens that are hidden."""


@dataclass(frozen=True)
class Told(TextCorpus):
    """The samples of the text corpus with their answers told.

    >>> Told(0).sample(1).turns[0].human.endswith(TextCorpus(0).sample(1).turns[0].answer)
    True
    """

    def sample(self, index: int) -> Sample:
        sample = TextCorpus(self.seed).sample(index)
        (turn,) = sample.turns
        told = Turn(f"{turn.human} {turn.answer}", "told")
        return Sample(sample.id, (told,), options=("told",))  # the one class is not learned


def hidden_words(seed: int) -> Loss:
    """Cross-entropy of the hidden tokens, one value per row. The input embeddings are the output head, so nothing is
    trained that the encoder does not keep; the end token stands for a hidden one."""

    def loss(view: View) -> Tensor:
        backbone = view.backbone()
        model: Any = backbone.model
        inputs = backbone.codec.encode(view.samples).inputs
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        special = torch.tensor([model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id])
        drawn = torch.rand(ids.shape, generator=torch_rng(seed, "masking", view.step)) < SHARE
        hidden = drawn & ~torch.isin(ids, special)
        states = model.base_model(ids.masked_fill(hidden, model.config.eos_token_id), mask).last_hidden_state
        scores = states[hidden] @ model.get_input_embeddings().weight.T
        losses = functional.cross_entropy(scores, ids[hidden], reduction="none")
        rows = losses.new_zeros(len(ids)).index_add(0, hidden.nonzero()[:, 0], losses)
        return rows * (len(ids) / hidden.sum())

    return loss
