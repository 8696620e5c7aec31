"""Benchmarks as plans see them: how many samples there are, and none of them.

A benchmark that reads files gives its outline with the hook `pfl_outline_benchmark`, by the counts that its authors
publish. How long a row is, its card says under `row`: `{text, pictures, answers}`, tokens of the question, pictures in
it, and tokens of the answer, of a typical sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfl_platform.data import Kind, OnDemand, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.plugins import available

UNKNOWN = {"text": 128, "pictures": 0, "answers": 16}
"""Of a benchmark whose card does not say."""


@dataclass(frozen=True)
class Unread(OnDemand):
    """So many samples of a file that was not read.

    >>> len(Unread(3)), len(Unread(3)[1:])
    (3, 2)
    """

    size: int

    def __len__(self) -> int:
        return self.size

    def at(self, place: int) -> Sample:
        raise UserError("This is the outline of a benchmark: its samples can be counted, and not read.")


def counted_task(
    name: str, metric: str, train: int, test: int, *, validation: int = 0, kind: Kind = "multi-choice"
) -> TaskData:
    """A task of which only the numbers of samples are known."""
    return TaskData(name, kind, metric, Unread(train), Unread(validation), Unread(test))


@dataclass(frozen=True)
class Row:
    """A typical sample of a benchmark."""

    text: int
    pictures: float
    answers: int
    known: bool  # whether the benchmark's card says it

    def tokens(self, per_picture: int) -> int:
        """Positions of the question and the answer, for a backbone to which a picture is so many positions."""
        return self.text + round(self.pictures * per_picture) + self.answers


def row_of(benchmark: str) -> Row:
    """What a benchmark's card says of a row."""
    plugin = available("benchmark").get(benchmark)
    said: Mapping[str, Any] = (plugin.about.get("row") if plugin is not None else None) or {}
    values = {**UNKNOWN, **said}
    return Row(int(values["text"]), float(values["pictures"]), int(values["answers"]), bool(said))
