"""Conversations that teach the tiny vision-language backbones to see, before and between the questions of the corpus.

A question of the corpus supervises two or three tokens, a lesson about thirty. A description names the place before
what is there, so that each word has one spot to look at; the questions after it look things up by colour and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES, DrawnPicture, Obj, Scene
from pfl_benchmarks.drake_synth.puzzles import ORDINALS
from pfl_benchmarks.drake_synth.render import MARK_LINE, Part, placed
from pfl_benchmarks.drake_synth.words import NUMBERS
from pfl_platform.data import Sample, Turn

INKS = tuple(COLOURS)
QUESTIONS = 5
"""Questions after the description of a single picture."""


@dataclass(frozen=True)
class Lessons:
    """Lesson i is a function of (seed, i) alone. `part`: which pictures are drawn from.

    >>> Lessons(0).sample(1) == Lessons(0).sample(1)
    True
    """

    seed: int
    part: Part = "corpus"

    def sample(self, index: int) -> Sample:
        """A lesson about one picture (seven times in ten) or about two to four."""
        dice = Dice(self.seed, "lessons", index)
        count = dice.weighted((1, 2, 3, 4), (7, 1, 1, 1))
        colours, shapes = dice.shuffled(range(len(COLOURS))), dice.shuffled(range(len(SHAPES)))
        scenes = []
        for _ in range(count):
            many = 1 + dice.below(4 if count == 1 else 2)
            # Half of the pictures show different colours and shapes throughout, so that each names one thing.
            loose = dice.chance(0.5)
            things = [
                Obj(
                    dice.below(len(COLOURS)) if loose else colours[place],
                    dice.below(len(SHAPES)) if loose else shapes[place],
                    dice.below(len(SIZES)),
                )
                for place in range(many)
            ]
            scenes.append(placed(things, dice, self.part))
        turns = [
            turn
            for ordinal, scene in zip(ORDINALS, scenes, strict=False)
            for turn in about(dice, scene, ordinal, count)
        ]
        turns[0] = Turn(MARK_LINE * count + turns[0].human, turns[0].answer)
        return Sample(f"lesson-{self.seed}-{index}", tuple(turns), tuple(DrawnPicture(scene) for scene in scenes))


def about(dice: Dice, scene: Scene, ordinal: str, count: int) -> list[Turn]:
    """A picture's description; for a single picture also questions about it."""
    things = sorted(scene.objects, key=lambda thing: thing.place)
    which = "the picture" if count == 1 else f"the {ordinal} picture"
    told = ", ".join(f"{PLACES[thing.place]} {SIZES[thing.size]} {named(thing)}" for thing in things)
    description = Turn(f"Describe {which}.", told)
    return [description] if count > 1 else [description, *(question(dice, things) for _ in range(QUESTIONS))]


def question(dice: Dice, things: Sequence[Obj]) -> Turn:
    """A question about one of the things, of a kind that has one right answer here."""
    thing = dice.pick(things)
    ink, shape, place = INKS[thing.colour], SHAPES[thing.shape], PLACES[thing.place]
    inked = sum(other.colour == thing.colour for other in things)
    shaped = sum(other.shape == thing.shape for other in things)
    kinds = ["place", "count", "there"]
    kinds += ["size", "shape", "where"] if inked == 1 else []
    kinds += ["colour", "where shape"] if shaped == 1 else []
    kind = dice.pick(kinds)
    if kind == "there":
        return claim(dice, thing, things)
    simple = {
        "place": (f"What is {place}?", named(thing)),
        "count": (f"How many {ink} things are there?", NUMBERS[inked - 1]),
        "size": (f"What size is the {ink} thing?", SIZES[thing.size]),
        "shape": (f"What shape is the {ink} thing?", shape),
        "where": (f"Where is the {ink} thing?", place),
        "colour": (f"What colour is the {shape}?", ink),
        "where shape": (f"Where is the {shape}?", place),
    }
    return Turn(*simple[kind])


def claim(dice: Dice, thing: Obj, things: Sequence[Obj]) -> Turn:
    """A claim that something is there; what is claimed is the thing, or one like it in colour or in shape."""
    colour, shape = dice.below(len(COLOURS)), dice.below(len(SHAPES))
    pairs = [(thing.colour, thing.shape), (colour, thing.shape), (thing.colour, shape)]
    pair = dice.pick(pairs[: 1 + 2 * dice.below(2)])
    truth = any((other.colour, other.shape) == pair for other in things)
    return Turn(f"There is a {INKS[pair[0]]} {SHAPES[pair[1]]}.", str(truth))


def named(thing: Obj) -> str:
    """For example `red ring`."""
    return f"{INKS[thing.colour]} {SHAPES[thing.shape]}"
