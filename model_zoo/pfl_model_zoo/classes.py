"""Samples as rows of a classifier: it reads the question, or the picture, and chooses among the options or gives a
number."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pfl_model_zoo.chat import render
from pfl_platform.backbones import IGNORE, Encoded, Span
from pfl_platform.data import Sample
from pfl_platform.errors import UserError


class RowReader(Protocol):
    """What a classifier reads of samples. name: of the backbone, for refusals. pad: id of the padding token."""

    name: str
    pad: int

    def read(self, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], Sequence[Sequence[Span]]]:
        """Inputs of the model, `attention_mask` among them, int64 (rows, positions), and the positions' spans."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


class ClassCodec:
    """See `pfl_platform.backbones.OneStepCodec`.

    A sample with options is a row whose class is the index of the right one, in the order in which the sample lists
    them. A sample without options must have a number as its answer: that is the row's value. The model's logits are
    (rows, 2, classes), those of position 0 being what position 1 is to be given, as everywhere.
    """

    def __init__(self, reader: RowReader, classes: int) -> None:
        self.reader = reader
        self.classes = classes

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """None: nothing is generated."""
        return ()

    @property
    def pad_id(self) -> int:
        return self.reader.pad

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.reader.decode(ids)

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """A batch, on the CPU, padded on the right. What the reader gives; choices: int64 (rows,), the classes that a
        row has. labels: int64 (rows, 2); values as the samples have them."""
        inputs, spans = self.reader.read(samples)
        targets = [self.target(sample) for sample in samples]
        labels = torch.full((len(samples), 2), IGNORE)
        values = torch.full((len(samples),), math.nan)
        for number, target in enumerate(targets):
            if answers and isinstance(target, int):
                labels[number, 1] = target
            elif answers:
                values[number] = target
        inputs["choices"] = torch.tensor([max(1, len(sample.options)) for sample in samples])
        return Encoded(
            inputs,
            labels,
            spans,
            [render(sample, answers=answers).text for sample in samples],
            None if bool(values.isnan().all()) else values,
        )

    def read(self, logits: Tensor, samples: Sequence[Sample]) -> list[str]:
        """The likeliest option's text, or the number. logits: (rows, 2, classes)."""
        answers = []
        for sample, row in zip(samples, logits[:, 0], strict=True):
            count = len(sample.options)
            answers.append(sample.options[int(row[:count].argmax())] if count else f"{float(row[0]):.4f}")
        return answers

    def target(self, sample: Sample) -> int | float:
        """The class of a sample with options, the value of one without; a `UserError` when it has neither."""
        name, options, gold = self.reader.name, sample.options, sample.gold
        if not options:
            try:
                value = float(gold[0])
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                return value
            raise UserError(
                f"Sample '{sample.id}' has no options, and its answer is no number; the encoder '{name}' can only "
                "choose or rate, so choose another backbone."
            )
        if len(options) > self.classes:
            raise UserError(
                f"Sample '{sample.id}' has {len(options)} options, but the encoder '{name}' has {self.classes} "
                "classes; raise the backbone option classes."
            )
        letters = dict(zip(string.ascii_uppercase, range(len(options)), strict=False))
        for answer in gold:
            if answer in options:
                return options.index(answer)
        for answer in gold:  # "B", where the question letters its options
            if answer.strip() in letters:
                return letters[answer.strip()]
        raise UserError(f"Sample '{sample.id}' has the answer '{gold[0]}', which is none of its options.")
