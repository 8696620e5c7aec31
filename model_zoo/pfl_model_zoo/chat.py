"""One chat rendering for all backbones.

A sample becomes the same text whatever backbone reads it, so character spans in that text match token positions across
tokenizers. One turn reads

    USER: What colour is the ball? ASSISTANT: red⏎

where the line break at the end of a turn stands for the end token, whatever that token is called in a backbone.

The text comes in pieces, and each piece is tokenised by itself. No token ever crosses a border between pieces, so the
tokens up to `ASSISTANT:` are the same in training and in generation, and the answer's tokens never depend on the
prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfl_platform.data import IMAGE_MARK, Sample
from pfl_platform.errors import UserError

Role = Literal["frame", "prompt", "mark", "answer", "end"]
HUMAN = "USER:"
MODEL = " ASSISTANT:"
END = "\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """`text` begins at character `start` of the row; `role` says what may be done with it.

    frame: the words that open and close a prompt. prompt: what the human says. mark: stands for one picture.
    answer: what is learned. end: the end token after an answer.
    """

    start: int
    text: str
    role: Role

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Rendering:
    """A row's text, its pieces in order, and how many of the sample's pictures it shows (the first ones)."""

    text: str
    pieces: tuple[Piece, ...]
    pictures: int


def render(sample: Sample, *, answers: bool = True) -> Rendering:
    """All turns with their answers, or the first prompt alone (`answers=False`), up to and including `ASSISTANT:`.

    Pictures without a mark get one before the first turn's text; a mark without a picture is a `UserError`.

    >>> from pfl_platform.data import Sample, Turn
    >>> row = render(Sample("s", (Turn("2 + 2?", "4"),)))
    >>> row.text
    'USER: 2 + 2? ASSISTANT: 4\\n'
    >>> [(piece.role, piece.text) for piece in row.pieces]
    [('frame', 'USER:'), ('prompt', ' 2 + 2?'), ('frame', ' ASSISTANT:'), ('answer', ' 4'), ('end', '\\n')]
    """
    pieces: list[Piece] = []
    cursor = 0

    def add(text: str, role: Role) -> None:
        nonlocal cursor
        if text:
            pieces.append(Piece(cursor, text, role))
            cursor += len(text)

    humans = _with_marks(sample)
    for human, turn in zip(humans, sample.turns, strict=True):
        add(HUMAN, "frame")
        for index, part in enumerate(f" {human}".split(IMAGE_MARK)):
            if index:
                add(IMAGE_MARK, "mark")
            add(part, "prompt")
        add(MODEL, "frame")
        if not answers:
            break
        if answer := turn.answer.strip():
            add(f" {answer}", "answer")
        add(END, "end")
    shown = sum(piece.role == "mark" for piece in pieces)
    return Rendering("".join(piece.text for piece in pieces), tuple(pieces), shown)


def _with_marks(sample: Sample) -> list[str]:
    """The human turns with exactly one mark per picture."""
    humans = [turn.human.strip() for turn in sample.turns]
    if not humans:
        raise UserError(f"Sample '{sample.id}' has no conversation turn; give it at least one question and answer.")
    marks = sum(human.count(IMAGE_MARK) for human in humans)
    missing = len(sample.pictures) - marks
    if missing < 0:
        raise UserError(
            f"Sample '{sample.id}' has {marks} {IMAGE_MARK} marks but {len(sample.pictures)} pictures; "
            "add the missing pictures or remove marks."
        )
    humans[0] = f"{IMAGE_MARK}\n" * missing + humans[0]
    return humans
