"""Question families over two to four pictures."""

from __future__ import annotations

from dataclasses import replace

from pfl_benchmarks.drake_synth.drawing import PLACES, Obj
from pfl_benchmarks.drake_synth.puzzles import COUNTS, Brief, Family, Puzzle, chosen, family, judged, named_thing
from pfl_benchmarks.drake_synth.words import Concept

LOOK: tuple[Concept, ...] = ("colour", "shape", "size", "number")
"""A look describes a picture whose objects are all alike: [colour, shape, size, number less one], as in `ASPECTS`."""


def _look(brief: Brief) -> list[int]:
    return [brief.dice.below(COUNTS[kind]) for kind in LOOK]


def _alike(look: list[int]) -> list[Obj]:
    colour, shape, size, number = look
    return [Obj(colour, shape, size)] * (number + 1)


def _altered(brief: Brief, look: list[int], *aspects: int) -> list[int]:
    """The same look with other values of some aspects."""
    return [brief.other(LOOK[i], value) if i in aspects else value for i, value in enumerate(look)]


def _loosely(brief: Brief, look: list[int], aspect: int, *, keep: bool) -> list[int]:
    """A look that agrees (keep) or disagrees in one aspect, and in one to three aspects altogether.

    How many agree does not depend on `keep`, so only the aspect that is asked for decides.
    """
    others = [index for index in range(len(LOOK)) if index != aspect]
    agreeing = 1 + brief.dice.below(3)
    changed = brief.dice.take(others, len(LOOK) - agreeing if keep else len(others) - agreeing)
    return _altered(brief, look, *changed, *(() if keep else (aspect,)))


@family("aspect", 2, "Both pictures have the same {aspect}.", "Do the pictures agree in {aspect}?")
def same(brief: Brief) -> Puzzle:
    first = _look(brief)
    second = _loosely(brief, first, brief.focus, keep=brief.outcome == 0)
    question = brief.wording.format(aspect=brief.word("aspect", brief.focus))
    return judged(brief, question, _alike(first), _alike(second))


@family("aspect", 1, "What changes between the pictures?", "In what do the pictures differ?")
def changed(brief: Brief) -> Puzzle:
    first = _look(brief)
    scenes = (tuple(_alike(first)), tuple(_alike(_altered(brief, first, brief.focus))))
    return Puzzle(scenes, brief.wording, brief.word("aspect", brief.focus), brief.words("aspect"))


@family("aspect", 2, "The third picture fits the others by {aspect}.", "By {aspect}, does the last picture fit?")
def fits(brief: Brief) -> Puzzle:
    first = _look(brief)
    second = _loosely(brief, first, brief.focus, keep=True)
    third = _loosely(brief, first, brief.focus, keep=brief.outcome == 0)
    question = brief.wording.format(aspect=brief.word("aspect", brief.focus))
    return judged(brief, question, _alike(first), _alike(second), _alike(third))


def _odd(count: int) -> Family:
    def make(brief: Brief) -> Puzzle:
        base = _look(brief)
        looks = [base] * count
        looks[brief.outcome] = _altered(brief, base, brief.focus)
        # Two more pictures are odd in other ways, so the question's word decides.
        places = brief.dice.take([place for place in range(count) if place != brief.outcome], 2)
        aspects = brief.dice.take([aspect for aspect in range(len(LOOK)) if aspect != brief.focus], 2)
        for place, aspect in zip(places, aspects, strict=True):
            looks[place] = _altered(brief, base, aspect)
        question = brief.wording.format(aspect=brief.word("aspect", brief.focus))
        return chosen(brief, question, [_alike(look) for look in looks])

    wordings = ("Which picture has another {aspect}?", "Which picture is odd by {aspect}?")
    return Family(f"odd_{count}", "aspect", count, wordings, make)


def _which(count: int, focus: Concept) -> Family:
    def make(brief: Brief) -> Puzzle:
        colour = brief.focus if focus == "colour" else brief.any("colour")
        shape = brief.focus if focus == "shape" else brief.any("shape")
        # One wrong picture at least is wrong in the focus alone, the others in the focus or in the other word.
        wrong_in_focus = brief.dice.shuffled([True, *(brief.dice.chance(0.5) for _ in range(count - 2))])
        scenes = []
        for in_focus in wrong_in_focus:
            if in_focus == (focus == "colour"):
                scenes.append([brief.thing(brief.other("colour", colour), shape)])
            else:
                scenes.append([brief.thing(colour, brief.other("shape", shape))])
        scenes.insert(brief.outcome, [brief.thing(colour, shape)])
        words = {"colour": brief.word("colour", colour), "shape": brief.word("shape", shape)}
        return chosen(brief, brief.wording.format(**words), scenes)

    wordings = ("Which picture shows a {colour} {shape}?", "In which picture is a {colour} {shape}?")
    return Family(f"which_{focus}_{count}", focus, count, wordings, make)


odd_3, odd_4 = _odd(3), _odd(4)
which_colour_3, which_colour_4 = _which(3, "colour"), _which(4, "colour")
which_shape_3, which_shape_4 = _which(3, "shape"), _which(4, "shape")


@family("colour", 1, "What colour did the {shape} become?", "Which colour is new in the second picture?")
def became(brief: Brief) -> Puzzle:
    shape = brief.any("shape")
    old = brief.other("colour", brief.focus)
    others = [obj for obj in brief.distinct(brief.dice.below(3), colour=old, shape=shape) if obj.colour != brief.focus]
    places = brief.dice.take(range(len(PLACES)), len(others) + 1)
    first = [replace(obj, place=p) for obj, p in zip([brief.thing(old, shape), *others], places, strict=True)]
    second = [replace(first[0], colour=brief.focus), *first[1:]]
    return Puzzle(
        (tuple(first), tuple(second)),
        brief.wording.format(shape=brief.word("shape", shape)),
        brief.word("colour", brief.focus),
        brief.words("colour"),
        tuple(brief.word("colour", obj.colour) for obj in first),
    )


@family("colour", 2, "Both pictures show a {colour} thing.", "Is a {colour} thing in both pictures?")
def both(brief: Brief) -> Puzzle:
    # Some colour is always in both pictures and another in one; which of them is asked for decides.
    other = brief.other("colour", brief.focus)
    shared, lone = (brief.focus, other) if brief.outcome == 0 else (other, brief.focus)
    scenes = []
    for _ in range(2):
        rest = [brief.thing(brief.other("colour", shared, lone))] if brief.dice.chance(0.4) else []
        scenes.append([brief.thing(shared), *rest])
    scenes[brief.dice.below(2)].append(brief.thing(lone))
    return judged(brief, brief.wording.format(colour=brief.word("colour", brief.focus)), *scenes)


@family("colour", 2, "Which picture has more {colour} things?", "More {colour} things are in which picture?")
def more(brief: Brief) -> Puzzle:
    few = brief.dice.below(4)
    many = few + 1 + brief.dice.below(4 - few)
    things = many + brief.dice.below(5 - many)  # in either picture, so that their number is no hint
    scenes = []
    for held in (many, few) if brief.outcome == 0 else (few, many):
        fill = [brief.thing(brief.other("colour", brief.focus)) for _ in range(things - held)]
        scenes.append([brief.thing(brief.focus) for _ in range(held)] + fill)
    return chosen(brief, brief.wording.format(colour=brief.word("colour", brief.focus)), scenes)


@family(
    "number", 1, "How many {colour} things are in both pictures together?", "Add the {colour} things of both pictures."
)
def total(brief: Brief) -> Puzzle:
    colour = brief.any("colour")
    left = brief.dice.below(brief.focus + 2)
    scenes = []
    for held in (left, brief.focus + 1 - left):
        fill = min(max(brief.dice.below(3), 0 if held else 1), 4 - held)
        scene = [brief.thing(colour) for _ in range(held)]
        scenes.append(tuple(scene + [brief.thing(brief.other("colour", colour)) for _ in range(fill)]))
    question = brief.wording.format(colour=brief.word("colour", colour))
    return Puzzle(tuple(scenes), question, brief.word("number", brief.focus), brief.words("number"))


@family("number", 1, "The pictures count on. How many things come next?", "How many things would come next?")
def next_number(brief: Brief) -> Puzzle:
    # Numbers 1 .. 4: a row of two goes up to three or four, or down to one or two.
    step = 1 if brief.focus >= 2 else -1
    scenes = []
    for number in (brief.focus - 2 * step, brief.focus - step):
        colour, shape, size, _ = _look(brief)
        scenes.append(tuple(_alike([colour, shape, size, number])))
    return Puzzle(tuple(scenes), brief.wording, brief.word("number", brief.focus), brief.words("number"))


@family(
    "colour",
    1,
    "Take the colour of the first and the shape of the second picture.",
    "Give the second thing the colour of the first.",
)
def mix(brief: Brief) -> Puzzle:
    shape = brief.any("shape")
    first = brief.thing(brief.focus, brief.other("shape", shape))
    second = brief.thing(brief.other("colour", brief.focus), shape)
    return named_thing(brief, brief.focus, shape, (second.colour, first.shape), [first], [second])
