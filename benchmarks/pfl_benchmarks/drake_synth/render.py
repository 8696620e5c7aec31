"""From a puzzle to a sample: places, jitter, ground, prompt in the DRAKE form.

Pictures are partitioned. The digest of a picture's layout (what is where, whatever the ground and style) says to which
of four parts it belongs, and a scene is placed anew until it falls into the part that is wanted. So no layout is ever
shared between pretraining or public data, training, validation and test, however many samples are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import PLACES, REACH, TINTS, DrawnPicture, Obj, Scene, Style
from pfl_benchmarks.drake_synth.puzzles import ORDINALS, TRUTH, Puzzle
from pfl_platform.data import IMAGE_MARK, Picture, Sample, Turn

Part = Literal["corpus", "train", "validation", "test"]
PARTS: tuple[Part, ...] = ("corpus", "train", "validation", "test")

Form = Literal["list", "yes", "open"]
"""How the answer is asked for: a list of the options, yes or no for true or false, or free. There are no lettered
options: whoever knows the answer would still have to find its letter, and tiny backbones fail at that."""


def part_of(scene: Scene) -> Part:
    """The part of the data to which a scene's layout belongs."""
    return PARTS[hashlib.sha256(scene.layout.encode()).digest()[0] % len(PARTS)]


def placed(objects: Sequence[Obj], dice: Dice, part: Part, style: Style = "filled") -> Scene:
    """The objects with places (given ones are kept), offsets and tints, as a scene of the wanted part."""
    shade = 24 + dice.below(32)
    taken = {obj.place for obj in objects}
    while True:
        free = dice.shuffled([place for place in range(len(PLACES)) if place not in taken])
        done = []
        for obj in objects:
            done.append(
                replace(
                    obj,
                    place=free.pop() if obj.place < 0 else obj.place,
                    dx=dice.below(2 * REACH + 1) - REACH,
                    dy=dice.below(2 * REACH + 1) - REACH,
                    tint=dice.below(TINTS),
                )
            )
        scene = Scene(tuple(done), shade, style)
        if part_of(scene) == part:
            return scene


@dataclass(frozen=True)
class Asked:
    """The text of a question: what is asked, the right answer, the options as shown, and all accepted answers."""

    question: str
    answer: str
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


def asked(puzzle: Puzzle, form: Form, dice: Dice, size: int = 4, slot: int | None = None) -> Asked:
    """The puzzle's question in a form, with at most `size` options where the puzzle does not fix them.

    slot: where the answer stands among shuffled options, modulo their number; at random when left out.
    """
    if form == "open":
        return Asked(f"{puzzle.question}\nYour answer is:", puzzle.answer)
    options, answer = offered(puzzle, dice, size, slot), puzzle.answer
    if form == "yes" and puzzle.answers == TRUTH:
        options, answer = ["yes", "no"], "yes" if answer == TRUTH[0] else "no"
    return Asked(f"{puzzle.question}\nChoice list:[{', '.join(options)}]. Your answer is:", answer, tuple(options))


def offered(puzzle: Puzzle, dice: Dice, size: int, slot: int | None) -> list[str]:
    """The options: all of them in order, or the answer among tempting and other wrong ones."""
    if puzzle.ordered:
        return list(puzzle.answers)
    tempting = dict.fromkeys(dice.shuffled([word for word in puzzle.near if word != puzzle.answer]))
    rest = [word for word in puzzle.answers if word != puzzle.answer and word not in tempting]
    wrong = [*tempting, *dice.shuffled(rest)][: size - 1]
    options = dice.shuffled(wrong)
    options.insert(dice.below(len(wrong) + 1) if slot is None else slot % (len(wrong) + 1), puzzle.answer)
    return options


def marks(count: int) -> str:
    """Where the pictures stand, a line each; several are called by their place in the row, as questions call them.

    >>> marks(1), marks(2)
    ('<image>\\n', 'first: <image>\\nsecond: <image>\\n')
    """
    if count == 1:
        return f"{IMAGE_MARK}\n"
    return "".join(f"{ordinal}: {IMAGE_MARK}\n" for ordinal in ORDINALS[:count])


def sample_of(name: str, text: Asked, scenes: Sequence[Scene]) -> Sample:
    """The sample: a line with an `<image>` mark for each picture first, then the question."""
    pictures: tuple[Picture, ...] = tuple(DrawnPicture(scene) for scene in scenes)
    human = marks(len(pictures)) + text.question
    turn = Turn(human, text.answer)
    return Sample(name, (turn,), pictures, text.options, text.references)
