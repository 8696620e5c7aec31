"""Multi-choice questions by likelihood: of a question's options, the one whose answer the model finds likeliest.

A model that has not learned the form of the answers still prefers one of them. The alternative to reading the option
out of what the model writes (`generate.greedy`); the metric scores the answer that was chosen.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix
from pfl_platform.backbones import Encoded, OneStepCodec
from pfl_platform.data import Sample
from pfl_platform.errors import UserError
from pfl_platform.training.surfaces import Output


def by_option(sample: Sample) -> tuple[str, ...]:
    """The sample's own answer with each option in the place of the right one, or each option's letter.

    Raises `UserError` where the answer names none of the options.

    >>> from pfl_platform.data import Turn
    >>> by_option(Sample("0", (Turn("?", "the answer is no"),), options=("yes", "no"), references=("no",)))
    ('the answer is yes', 'the answer is no')
    >>> by_option(Sample("1", (Turn("A. deer B. frog", "B"),), options=("deer", "frog")))
    ('A', 'B')
    """
    answer, options = sample.turns[0].answer, sample.options
    for right in sorted(set(sample.gold) & set(options), key=len, reverse=True):
        before, found, after = answer.rpartition(right)
        if found:
            return tuple(before + option + after for option in options)
    letters = string.ascii_uppercase[: len(options)]
    before, found, after = answer.partition(answer.strip())
    if found in tuple(letters):
        return tuple(before + letter + after for letter in letters)
    raise UserError(
        f"Sample '{sample.id}' cannot be scored by likelihood: its answer '{answer}' names none of its options; set "
        "evaluation.choose=written."
    )


def is_choice(host: Host, sample: Sample) -> bool:
    """Whether a question has options, and the backbone writes its answers."""
    return bool(sample.options) and not isinstance(host.backbone.codec, OneStepCodec)


@torch.no_grad()
def likeliest(host: Host, samples: Sequence[Sample], passes: Sequence[Mix], *, per_token: bool = False) -> list[str]:
    """For each sample the answer of the option that is likeliest under the passes, whose logits are added at every
    token. The likelihood is that of the whole answer, its end included; with `per_token` its mean over the tokens."""
    answers = [by_option(sample) for sample in samples]
    counts = torch.tensor([len(texts) for texts in answers])
    rows = [
        replace(sample, turns=(replace(sample.turns[0], answer=text),))
        for sample, texts in zip(samples, answers, strict=True)
        for text in texts
    ]
    encoded = host.encode(rows)
    spread = [_spread(mix, counts) for mix in passes]
    outputs = [Output(_scores(host, encoded, mix), encoded) for mix in spread]
    logits = reduce(torch.add, [output.answers.float() for output in outputs])
    tokens = encoded.answers.tokens
    chances = outputs[0].by_row(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].double())
    if per_token:
        chances = chances / encoded.answers.counts
    chosen = [int(part.argmax()) for part in torch.split(chances.cpu(), counts.tolist())]
    return [texts[place] for texts, place in zip(answers, chosen, strict=True)]


def _scores(host: Host, encoded: Encoded, mix: Mix) -> Tensor:
    with host.mixing(mix, host.masks(encoded.inputs)):
        return host.scores(encoded)


def _spread(mix: Mix, counts: Tensor) -> Mix:
    """A mix with a weight for each question as one with a weight for each of its options."""

    def spread(weight: float | Tensor) -> float | Tensor:
        if not isinstance(weight, Tensor) or not weight.dim():
            return weight
        return weight.repeat_interleave(counts.to(weight.device))

    return mix if isinstance(mix, str) else {slot: spread(weight) for slot, weight in mix.items()}
