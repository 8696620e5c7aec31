"""Question families over one picture."""

from __future__ import annotations

from dataclasses import replace

from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES
from pfl_benchmarks.drake_synth.puzzles import Brief, Puzzle, family, judged, named_thing
from pfl_benchmarks.drake_synth.words import Concept

SAYINGS = ("up", "down", "in", "out")
FOCUS_LIE = 0.8
"""How often a false statement is wrong in its focus, not in its other word, so that the other alone helps little."""


@family("colour", 1, "What colour is the {shape}?", "The {shape} has which colour?")
def colour_of(brief: Brief) -> Puzzle:
    shape = brief.any("shape")
    others = brief.distinct(brief.dice.below(3), colour=brief.focus, shape=shape)
    return Puzzle(
        ((brief.thing(brief.focus, shape), *others),),
        brief.wording.format(shape=brief.word("shape", shape)),
        brief.word("colour", brief.focus),
        brief.words("colour"),
        tuple(brief.word("colour", obj.colour) for obj in others),
    )


@family("shape", 1, "What shape is the {colour} thing?", "The {colour} thing has which shape?")
def shape_of(brief: Brief) -> Puzzle:
    colour = brief.any("colour")
    others = brief.distinct(brief.dice.below(3), colour=colour, shape=brief.focus)
    return Puzzle(
        ((brief.thing(colour, brief.focus), *others),),
        brief.wording.format(colour=brief.word("colour", colour)),
        brief.word("shape", brief.focus),
        brief.words("shape"),
        tuple(brief.word("shape", obj.shape) for obj in others),
    )


@family("colour", 2, "What size is the {colour} thing?", "Is the {colour} thing small or big?")
def size_of(brief: Brief) -> Puzzle:
    shape = brief.any("shape")
    # Another object has the other size, so the question's word decides.
    first, *rest = brief.distinct(1 + brief.dice.below(2), colour=brief.focus, shape=shape)
    others = [replace(first, size=1 - brief.outcome), *rest]
    return Puzzle(
        ((brief.thing(brief.focus, shape, brief.outcome), *others),),
        brief.wording.format(colour=brief.word("colour", brief.focus)),
        brief.word("size", brief.outcome),
        brief.words("size"),
    )


@family("shape", 1, "Describe the thing.", "What is shown?")
def describe(brief: Brief) -> Puzzle:
    colour = brief.any("colour")
    lie = (brief.other("colour", colour), brief.other("shape", brief.focus))
    return named_thing(brief, colour, brief.focus, lie, [brief.thing(colour, brief.focus)])


def _verify(brief: Brief, focus: Concept, colour: int, shape: int) -> Puzzle:
    scene = brief.distinct(brief.dice.below(2), colour=colour, shape=shape)
    shown_colour, shown_shape = colour, shape
    if brief.outcome == 1:
        if (focus == "colour") == brief.dice.chance(FOCUS_LIE):
            shown_colour = brief.other("colour", colour, *(obj.colour for obj in scene))
        else:
            shown_shape = brief.other("shape", shape, *(obj.shape for obj in scene))
    scene.append(brief.thing(shown_colour, shown_shape))
    question = brief.wording.format(colour=brief.word("colour", colour), shape=brief.word("shape", shape))
    return judged(brief, question, scene)


_THERE_IS = ("There is a {colour} {shape}.", "Does the picture show a {colour} {shape}?")


@family("colour", 2, *_THERE_IS)
def verify_colour(brief: Brief) -> Puzzle:
    return _verify(brief, "colour", brief.focus, brief.any("shape"))


@family("shape", 2, *_THERE_IS)
def verify_shape(brief: Brief) -> Puzzle:
    return _verify(brief, "shape", brief.any("colour"), brief.focus)


@family("number", 1, "How many {colour} things are there?", "Count the {colour} things.")
def count(brief: Brief) -> Puzzle:
    colour, total = brief.any("colour"), brief.focus + 1
    scene = [brief.thing(colour) for _ in range(total)]
    scene += [brief.thing(brief.other("colour", colour)) for _ in range(brief.dice.below(5 - total))]
    return Puzzle(
        (tuple(scene),),
        brief.wording.format(colour=brief.word("colour", colour)),
        brief.word("number", brief.focus),
        brief.words("number"),
    )


def _where(brief: Brief, kind: Concept, colour: int, shape: int) -> Puzzle:
    target = replace(brief.thing(colour, shape), place=brief.outcome)
    free = brief.dice.shuffled([place for place in range(len(PLACES)) if place != brief.outcome])
    others = brief.distinct(1 + brief.dice.below(3), colour=colour, shape=shape)
    others = [replace(obj, place=place) for obj, place in zip(others, free, strict=False)]
    return Puzzle(
        ((target, *others),),
        brief.wording.format(**{kind: brief.word(kind, brief.focus)}),
        brief.word("place", brief.outcome),
        brief.words("place"),
    )


@family("colour", 4, "Where is the {colour} thing?", "In which corner is the {colour} thing?")
def where_colour(brief: Brief) -> Puzzle:
    return _where(brief, "colour", brief.focus, brief.any("shape"))


@family("shape", 4, "Where is the {shape}?", "In which corner is the {shape}?")
def where_shape(brief: Brief) -> Puzzle:
    return _where(brief, "shape", brief.any("colour"), brief.focus)


RELATIONS = {"left of": (0, 1), "right of": (1, 0), "above": (0, 2), "below": (2, 0)}
"""A relation's name and a pair of quadrants (one, other) for which "one is ... other" holds."""


@family("colour", 2, "The {colour} thing is {relation} the {second} thing.")
def beside(brief: Brief) -> Puzzle:
    relation = brief.dice.pick(tuple(RELATIONS))
    one, other = RELATIONS[relation]
    step = brief.dice.below(2) * (2 if relation.endswith("of") else 1)
    places = (one + step, other + step) if brief.outcome == 0 else (other + step, one + step)
    second = brief.other("colour", brief.focus)
    scene = [replace(brief.thing(c), place=p) for c, p in zip((brief.focus, second), places, strict=True)]
    words = {"colour": brief.word("colour", brief.focus), "second": brief.word("colour", second)}
    return judged(brief, brief.wording.format(relation=relation, **words), scene)


@family("colour", 1, "Which colour is most common?", "Most things have which colour?")
def most(brief: Brief) -> Puzzle:
    many, few = brief.dice.pick(((2, 1), (2, 2), (3, 1)))
    rest = brief.dice.take([c for c in range(len(COLOURS)) if c != brief.focus], few)
    return Puzzle(
        (tuple(brief.thing(c) for c in [brief.focus] * many + rest),),
        brief.wording,
        brief.word("colour", brief.focus),
        brief.words("colour"),
        tuple(brief.word("colour", c) for c in rest),
    )


@family("make", 1, "What is the {colour} thing?", "Which kind is the {colour} thing?")
def make_of(brief: Brief) -> Puzzle:
    size, shape = divmod(brief.focus, len(SHAPES))
    colour = brief.any("colour")
    others = brief.distinct(brief.dice.below(3), colour=colour, shape=shape)
    makes = [obj.size * len(SHAPES) + obj.shape for obj in others] + [(1 - size) * len(SHAPES) + shape]
    named = brief.lexicon.named("make")
    return Puzzle(
        ((brief.thing(colour, shape, size), *others),),
        brief.wording.format(colour=brief.word("colour", colour)),
        brief.word("make", brief.focus),
        brief.words("make"),
        tuple(brief.word("make", make) for make in makes if make in named),
    )


@family("make", 2, "The {colour} thing is a {make}.", "Is the {colour} thing a {make}?")
def verify_make(brief: Brief) -> Puzzle:
    size, shape = divmod(brief.focus, len(SHAPES))
    colour = brief.any("colour")
    if brief.outcome == 1:
        size, shape = (1 - size, shape) if brief.dice.chance(0.5) else (size, brief.other("shape", shape))
    scene = [brief.thing(colour, shape, size), *brief.distinct(brief.dice.below(2), colour=colour, shape=shape)]
    words = {"colour": brief.word("colour", colour), "make": brief.word("make", brief.focus)}
    return judged(brief, brief.wording.format(**words), scene)


@family(
    "colour",
    2,
    "If a {colour} thing is there say {yes}, else say {no}.",
    "Say {yes} for a {colour} thing, else {no}.",
)
def rule(brief: Brief) -> Puzzle:
    yes, no = brief.dice.take(SAYINGS, 2)
    shape = brief.any("shape")
    scene = brief.distinct(1 + brief.dice.below(2), colour=brief.focus, shape=shape)
    lie = brief.other("colour", brief.focus, *(obj.colour for obj in scene))
    scene.append(brief.thing(brief.focus if brief.outcome == 0 else lie, shape))
    question = brief.wording.format(colour=brief.word("colour", brief.focus), yes=yes, no=no)
    return Puzzle((tuple(scene),), question, (yes, no)[brief.outcome], (yes, no))
