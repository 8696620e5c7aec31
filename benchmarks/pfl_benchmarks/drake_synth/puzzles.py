"""What a question family is: it makes a puzzle with a known answer from concepts, whatever they are called.

A family is told what to ask (`focus`: a concept of the family's kind; `outcome`: which of its balanced outcomes must
hold) and returns unplaced scenes, a question in the words of a lexicon, the right answer and all possible ones.
Nothing but the focus' word decides between outcomes as far as that can be arranged. The families themselves are in
`single` (one picture) and `rows` (two to four).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, SHAPES, SIZES, Obj
from pfl_benchmarks.drake_synth.words import MAKES, NUMBERS, Concept, Lexicon

TRUTH = ("True", "False")
ORDINALS = ("first", "second", "third", "fourth")
COUNTS: dict[Concept, int] = {
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "size": len(SIZES),
    "number": len(NUMBERS),
    "make": len(MAKES),
}


@dataclass(frozen=True)
class Brief:
    """What a family is asked to make."""

    dice: Dice
    lexicon: Lexicon
    focus: int
    outcome: int
    wording: str

    def word(self, kind: Concept, index: int) -> str:
        return self.lexicon.word(kind, index)

    def words(self, kind: Concept) -> tuple[str, ...]:
        """Every word of a kind."""
        return tuple(self.lexicon.word(kind, index) for index in self.lexicon.named(kind))

    def any(self, kind: Concept) -> int:
        """A random concept of a kind."""
        return self.dice.below(COUNTS[kind])

    def other(self, kind: Concept, *taken: int) -> int:
        """A random concept of a kind, none of `taken`."""
        return self.dice.pick([index for index in range(COUNTS[kind]) if index not in taken])

    def thing(self, colour: int | None = None, shape: int | None = None, size: int | None = None) -> Obj:
        """An object with the given concepts; the rest is random."""
        return Obj(
            colour=self.any("colour") if colour is None else colour,
            shape=self.any("shape") if shape is None else shape,
            size=self.any("size") if size is None else size,
        )

    def distinct(self, count: int, *, colour: int, shape: int) -> list[Obj]:
        """`count` objects whose colours and shapes all differ from each other and from the given ones."""
        colours = self.dice.take([c for c in range(len(COLOURS)) if c != colour], count)
        shapes = self.dice.take([s for s in range(len(SHAPES)) if s != shape], count)
        return [self.thing(c, s) for c, s in zip(colours, shapes, strict=True)]


@dataclass(frozen=True)
class Puzzle:
    """A question with its pictures' contents. `answers` holds every possible answer; `near` the tempting ones.
    `ordered`: options are shown as they stand (True before False, first before second)."""

    scenes: tuple[tuple[Obj, ...], ...]
    question: str
    answer: str
    answers: tuple[str, ...]
    near: tuple[str, ...] = ()
    ordered: bool = False


Maker = Callable[[Brief], Puzzle]


@dataclass(frozen=True)
class Family:
    """A kind of question. `focus`: what it asks about; `outcomes`: how many balanced outcomes besides the focus."""

    name: str
    focus: Concept
    outcomes: int
    wordings: tuple[str, ...]
    make: Maker


def family(focus: Concept, outcomes: int, *wordings: str) -> Callable[[Maker], Family]:
    """Makes a family of a maker, under its name."""
    return lambda make: Family(make.__name__, focus, outcomes, wordings, make)


def judged(brief: Brief, question: str, *scenes: list[Obj]) -> Puzzle:
    """A puzzle whose answer is True (outcome 0) or False (outcome 1)."""
    return Puzzle(tuple(map(tuple, scenes)), question, TRUTH[brief.outcome], TRUTH, ordered=True)


def chosen(brief: Brief, question: str, scenes: list[list[Obj]]) -> Puzzle:
    """A puzzle whose answer is a picture's place in the row (the outcome)."""
    ordinals = ORDINALS[: len(scenes)]
    return Puzzle(tuple(map(tuple, scenes)), question, ordinals[brief.outcome], ordinals, ordered=True)


def named_thing(brief: Brief, colour: int, shape: int, lie: tuple[int, int], *scenes: list[Obj]) -> Puzzle:
    """A puzzle whose answer is a colour and a shape; tempting: those with one or both taken from `lie`."""

    def call(c: int, s: int) -> str:
        return f"{brief.word('colour', c)} {brief.word('shape', s)}"

    near = (call(lie[0], shape), call(colour, lie[1]), call(*lie))
    truth = call(colour, shape)
    return Puzzle(tuple(map(tuple, scenes)), brief.wording, truth, (truth, *near), near)
