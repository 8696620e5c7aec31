"""Multi-choice questions by likelihood: of a question's options, the one whose answer the model finds likeliest.

A model that has not learned the form of the answers still prefers one of them. The alternative to reading the option
out of what the model writes (`generate.greedy`); the metric scores the answer that was chosen.
"""

from __future__ import annotations

import re
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

_MARK = r"(?<!\w)\(?{letter}[).:]"  # "B." "(B)" "B:"


def by_option(sample: Sample) -> tuple[str, ...]:
    """The sample's own answer with each option in the place of the right one; each option's letter where the answer is
    a letter; both where it is both.

    Raises `UserError` where the answer does not name the right option once, or where what is left of it would tell
    which one that is.

    >>> from pfl_platform.data import Turn
    >>> by_option(Sample("0", (Turn("?", "the answer is no"),), options=("yes", "no"), references=("no",)))
    ('the answer is yes', 'the answer is no')
    >>> by_option(Sample("1", (Turn("A. deer B. frog", "B"),), options=("deer", "frog")))
    ('A', 'B')
    >>> by_option(Sample("2", (Turn("A. deer B. frog", "B. frog"),), options=("deer", "frog"), references=("frog",)))
    ('A. deer', 'B. frog')
    """
    answer, options = sample.turns[0].answer, sample.options
    letters = string.ascii_uppercase[: len(options)]
    for place, right in enumerate(options):
        places = [*re.finditer(rf"(?<!\w){re.escape(right)}(?!\w)", answer, re.IGNORECASE)]
        if not places or not _only(answer, options, right):
            continue
        (match, *more), letter = places, letters[place : place + 1]
        before, after = answer[: match.start()], answer[match.end() :]
        mark = re.search(_MARK.format(letter=letter) + r"\s*$", before) if letter else None
        head = before[: mark.start()] if mark else before
        told = any(re.search(_MARK.format(letter=other), head + " " + after) for other in letters)
        if more or told or (mark and len(letters) < len(options)):
            break
        marks = [mark[0].replace(letter, other) for other in letters] if mark else [""] * len(options)
        shown = [_as(option, match[0]) for option in options]
        return tuple(head + lead + option + after for lead, option in zip(marks, shown, strict=True))
    alone = re.fullmatch(r"(\s*\(?)([A-Za-z])(\)?[.:]?\s*)", answer)
    if alone and alone[2].upper() in letters:
        return tuple(alone[1] + _as(letter, alone[2]) + alone[3] for letter in letters)
    raise UserError(
        f"Sample '{sample.id}' cannot be scored by likelihood: its answer '{answer}' does not name the right one of "
        "its options once, and nothing else; set evaluation.choose=written."
    )


def _only(answer: str, options: Sequence[str], right: str) -> bool:
    """Whether an answer names this option and none that is no part of it."""
    others = [option for option in options if option != right and option.casefold() not in right.casefold()]
    return not any(re.search(rf"(?<!\w){re.escape(option)}(?!\w)", answer, re.IGNORECASE) for option in others)


def _as(option: str, right: str) -> str:
    """An option written as the right one is: with a capital, or without."""
    if option[:1].isupper() == right[:1].isupper() or not right[:1].isalpha():
        return option
    return (option[:1].upper() if right[:1].isupper() else option[:1].lower()) + option[1:]


def is_choice(host: Host, sample: Sample) -> bool:
    """Whether a question has options, and the backbone writes its answers."""
    return bool(sample.options) and not isinstance(host.backbone.codec, OneStepCodec)


@torch.no_grad()
def likeliest(
    host: Host, samples: Sequence[Sample], passes: Sequence[Mix], *, per_token: bool = False, rows: int = 0
) -> list[str]:
    """For each sample the answer of the option that is likeliest under the passes, whose logits are added at every
    token. The likelihood is that of the whole answer, its end included; with `per_token` its mean over the tokens.
    rows: in a pass at most; 0: all. A mix that looks at the text sees the option in it."""
    answers = [by_option(sample) for sample in samples]
    owner = torch.tensor([number for number, texts in enumerate(answers) for _ in texts])
    every = [
        replace(sample, turns=(replace(sample.turns[0], answer=text),))
        for sample, texts in zip(samples, answers, strict=True)
        for text in texts
    ]
    size = rows or len(every)
    chances = [
        _chances(host, every[start : start + size], passes, owner[start : start + size], per_token)
        for start in range(0, len(every), size)
    ]
    parts = torch.split(torch.cat(chances), [len(texts) for texts in answers])
    return [texts[int(part.argmax())] for texts, part in zip(answers, parts, strict=True)]


def _chances(host: Host, samples: Sequence[Sample], passes: Sequence[Mix], owner: Tensor, per_token: bool) -> Tensor:
    """Log-likelihood of each sample's answer, float64 on the CPU. owner: whose weight of a mix a row has."""
    encoded = host.encode(samples)
    outputs = [Output(_scores(host, encoded, _taken(mix, owner)), encoded) for mix in passes]
    logits = reduce(torch.add, [output.answers.float() for output in outputs])
    told = logits.log_softmax(-1).gather(1, encoded.answers.tokens[:, None])[:, 0].double()
    found = outputs[0].by_row(told)
    return (found / encoded.answers.counts if per_token else found).cpu()


def _scores(host: Host, encoded: Encoded, mix: Mix) -> Tensor:
    with host.mixing(mix, host.masks(encoded.inputs)):
        return host.scores(encoded)


def _taken(mix: Mix, owner: Tensor) -> Mix:
    """A mix with a weight for each question as one with a weight for each row."""

    def taken(weight: float | Tensor) -> float | Tensor:
        by_row = isinstance(weight, Tensor) and weight.dim() > 0
        return weight[owner.to(weight.device)] if isinstance(weight, Tensor) and by_row else weight

    return mix if isinstance(mix, str) else {slot: taken(weight) for slot, weight in mix.items()}
