"""Rows that no backbone could take in, found before round 0.

A sample's row is too long when its pictures and answers alone fill more than the backbone's longest row. Whether they
do is known without opening a picture: every sample is encoded with blank ones in their place.

The time is bounded. Of what a backbone reads in training, at most `MOST_ROWS` rows are encoded, of what it only
answers `MOST_PROMPTS`: for each number of pictures those with the most text, which are the ones that can fail. Of
samples that a benchmark draws when they are asked for (anything but a list or a tuple), `DRAWN` of each part are looked
at; of samples that know which are the longest (`Measured`), `MOST_PROMPTS` for each number of pictures. A row that
slips through stops the run, and finished rounds are kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pfl_platform.backbones import Backbone, OneStepCodec
from pfl_platform.data import Measured, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.evaluation.choosing import by_option
from pfl_platform.evaluation.surfaces import Cell
from pfl_platform.federation import heads
from pfl_platform.federation.components import Federation
from pfl_platform.federation.rounds import Parts

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_ROWS = 2_000
MOST_PROMPTS = 200
DRAWN = 16


@dataclass(frozen=True)
class Row:
    """A sample and where it stands, in words."""

    sample: Sample
    where: str


class _Blank:
    """Stands for a picture that nobody has to see."""

    key = "\0blank"

    def load(self) -> Image:
        from PIL import Image

        return Image.new("RGB", (1, 1))


BLANK = _Blank()


def check_rows(fed: Federation, parts: Parts) -> None:
    """All that clients, further backbones that run at clients and the evaluation read fits into their rows, and options
    can be scored by likelihood where they are to be.

    Raises `UserError` with client, task and sample for the first that does not.
    """
    options, others = fed.config.evaluation, parts.beside(fed)
    for name in dict.fromkeys((*fed.backbones, *others)):
        learned = [
            row
            for client in fed.clients
            if fed.backbone_of[client.client_id] == name or name in others
            for task in client.tasks
            for row in _rows(client.client_id, task, ("train", "validation"))
        ]
        encode(fed.load(name), learned, answers=True, most=MOST_ROWS)
    asked = {
        Cell(client.client_id, task.name): list(_rows(client.client_id, task, (options.split,)))
        for client in fed.clients
        for task in client.tasks
    }
    if options.unseen:
        asked |= {Cell("", task.name): list(_rows("", task, (options.split,))) for task in fed.benchmark.unseen}
    for name in fed.backbones:
        cells = [cell for cell in asked if not cell.owner or options.others or fed.backbone_of[cell.owner] == name]
        answered = [row for cell in heads.measurable(fed, name, cells) for row in asked[cell]]
        encode(fed.load(name), answered, answers=False, most=MOST_PROMPTS)
        if options.choose != "written" and not isinstance(fed.load(name).codec, OneStepCodec):
            _check_choices(answered)


def _check_choices(rows: Sequence[Row]) -> None:
    """Answers of questions with options can be written with another option in the place of the right one."""
    for row in rows:
        if row.sample.options:
            try:
                by_option(row.sample)
            except UserError as error:
                raise UserError(f"{row.where}: {error}") from error


def check_public(backbones: Iterable[Backbone], samples: Sequence[Sample]) -> None:
    """The public set fits into the rows of every backbone."""
    rows = [Row(sample, "The public set") for sample in _looked_at(samples)]
    for backbone in backbones:
        encode(backbone, rows, answers=True, most=MOST_ROWS)


def encode(backbone: Backbone, rows: Sequence[Row], *, answers: bool, most: int) -> None:
    """Encodes the rows (the longest `most` of them) without their pictures; a refusal says where the sample stands."""
    for row in _longest(rows, most, answers):
        blank = replace(row.sample, pictures=(BLANK,) * len(row.sample.pictures))
        try:
            backbone.codec.encode([blank], answers=answers)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error


def _rows(client_id: str, task: TaskData, parts: Sequence[str]) -> Iterator[Row]:
    whose = f"Client '{client_id}', task '{task.name}'" if client_id else f"The unseen task '{task.name}'"
    for part in parts:
        for sample in _looked_at(getattr(task, part)):
            yield Row(sample, f"{whose}, {part} data")


def _looked_at(samples: Sequence[Sample]) -> Sequence[Sample]:
    if isinstance(samples, Measured):
        return samples.longest(MOST_PROMPTS)
    if isinstance(samples, list | tuple) or len(samples) <= DRAWN:
        return samples
    return [samples[index * len(samples) // DRAWN] for index in range(DRAWN)]


def _longest(rows: Sequence[Row], most: int, answers: bool) -> Sequence[Row]:
    """At most about `most` rows: of each number of pictures the ones with the most text, answers first."""
    if len(rows) <= most:
        return rows

    def length(row: Row) -> tuple[int, int]:
        turns = row.sample.turns
        return sum(len(turn.answer.encode()) for turn in turns) if answers else 0, len(turns[0].human)

    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(len(row.sample.pictures), []).append(row)
    share = max(1, most // len(groups))
    return [row for group in groups.values() for row in heapq.nlargest(share, group, key=length)]
