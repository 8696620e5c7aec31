"""What the tiny vision transformer is pretrained on: drawn things that it must name by size, colour and shape.

A picture shows one thing, or a big one among small ones: then the big one is named. All styles of drawing occur, so
that full shapes, outlines and grain are the same to what sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES, DrawnPicture, Obj, Style
from pfl_benchmarks.drake_synth.render import Part, marks, placed
from pfl_platform.data import Sample, Turn

KINDS = tuple(f"{size} {colour} {shape}" for size in SIZES for colour in COLOURS for shape in SHAPES)
"""The classes, in their order."""
QUESTION = f"{marks(1)}What is the only or the biggest thing?"
STYLES: tuple[Style, ...] = get_args(Style)
BIG = SIZES.index("big")
Skill = Literal["alone", "among"]
SKILLS: tuple[Skill, ...] = get_args(Skill)


@dataclass(frozen=True)
class Kinds:
    """Samples by number; sample i is a function of (seed, i) alone.

    >>> sample = Kinds(0).sample(3)
    >>> len(sample.options), sample.turns[0].answer in sample.options, len(sample.pictures)
    (96, True, 1)
    """

    seed: int

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "kinds", index)
        return kind_of(f"kind-{self.seed}-{index}", dice.pick(SKILLS), dice, "corpus")


def kind_of(name: str, skill: Skill, dice: Dice, part: Part) -> Sample:
    """A thing `alone`, of any size, or a big one `among` up to three small ones, drawn in any style."""
    size = dice.below(len(SIZES)) if skill == "alone" else BIG
    named = Obj(dice.below(len(COLOURS)), dice.below(len(SHAPES)), size)
    others = 0 if skill == "alone" else 1 + dice.below(len(PLACES) - 1)
    small = [Obj(dice.below(len(COLOURS)), dice.below(len(SHAPES)), 1 - BIG) for _ in range(others)]
    scene = placed([named, *small], dice, part, dice.pick(STYLES))
    answer = f"{tuple(SIZES)[size]} {tuple(COLOURS)[named.colour]} {SHAPES[named.shape]}"
    return Sample(name, (Turn(QUESTION, answer),), (DrawnPicture(scene),), KINDS)
