"""Several questions of the corpus about the same pictures, one after the other: dense supervision for the same words.

A question of the corpus supervises two or three tokens and costs a whole row with its pictures. A quiz takes the
pictures of one question and asks whatever else the corpus could ask about them, so that a row teaches five things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pfl_benchmarks.drake_synth.corpus import draw, form_for
from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES, DrawnPicture, Obj, Scene
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.puzzles import ORDINALS, TRUTH, Puzzle
from pfl_benchmarks.drake_synth.render import Part, asked, marks, placed
from pfl_benchmarks.drake_synth.single import RELATIONS, SAYINGS
from pfl_benchmarks.drake_synth.words import ASPECTS, MAKES, NUMBERS, PLAIN
from pfl_platform.data import Sample, Turn

INKS = tuple(COLOURS)
TURNS = 6
"""Questions per quiz at most."""
ROWS = 2.0
"""How often a family over several pictures is drawn against those over one: they need more practice."""


@dataclass(frozen=True)
class Quizzes:
    """Quiz i is a function of (seed, bare, i) alone. bare: share of questions without a list of options; those are
    short and easy to learn from.

    >>> Quizzes(0, 0.5).sample(1) == Quizzes(0, 0.5).sample(1)
    True
    """

    seed: int
    bare: float
    part: Part = "corpus"

    def sample(self, index: int) -> Sample:
        """A question of a random family, and others about its pictures, in random order."""
        dice = Dice(self.seed, "quizzes", str(self.bare), index)
        names = tuple(FAMILIES)
        chances = [ROWS if FAMILIES[name].make.__module__.endswith("rows") else 1.0 for name in names]
        puzzle = draw(FAMILIES[dice.weighted(names, chances)], PLAIN, dice)
        scenes = [placed(objects, dice, self.part) for objects in puzzle.scenes]
        others = list(single(dice, scenes[0].objects) if len(scenes) == 1 else several(dice, scenes))
        puzzles = dice.shuffled([puzzle, *dice.take(others, min(len(others), TURNS - 1))])
        turns = [spoken(dice, one, self.bare) for one in puzzles]
        turns[0] = Turn(marks(len(scenes)) + turns[0].human, turns[0].answer)
        return Sample(
            f"quiz-{self.seed}-{self.bare}-{index}", tuple(turns), tuple(DrawnPicture(scene) for scene in scenes)
        )


@dataclass(frozen=True)
class Lookups:
    """One picture whose things differ in colour and shape, and one short question about each of them: what is learned
    first, and what all else builds on. Sample i is a function of (seed, bare, i) alone."""

    seed: int
    bare: float
    part: Part = "corpus"

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "look-ups", str(self.bare), index)
        count = 2 + dice.below(3)
        looks = zip(dice.take(range(len(COLOURS)), count), dice.take(range(len(SHAPES)), count), strict=True)
        scene = placed([Obj(colour, shape, dice.below(len(SIZES))) for colour, shape in looks], dice, self.part)
        turns = []
        for thing in dice.shuffled(scene.objects):
            name = f"{INKS[thing.colour]} {SHAPES[thing.shape]}"
            there = Puzzle((), f"What is {PLACES[thing.place]}?", name, (name,))
            turns.append(spoken(dice, dice.pick([*by_colour(dice, thing), *by_shape(dice, thing), there]), self.bare))
        turns[0] = Turn(marks(1) + turns[0].human, turns[0].answer)
        return Sample(f"look-up-{self.seed}-{index}", tuple(turns), (DrawnPicture(scene),))


def spoken(dice: Dice, puzzle: Puzzle, bare: float) -> Turn:
    """The puzzle as a turn, with or without options."""
    if dice.chance(bare) or len(puzzle.answers) == 1:
        return Turn(puzzle.question, puzzle.answer)
    text = asked(puzzle, form_for(puzzle, dice), dice, 2 + dice.below(2))
    return Turn(text.question, text.answer)


def again(dice: Dice, family: str, answer: str, answers: Sequence[str], **words: str) -> Puzzle:
    """A question in a family's wording about pictures that are there already."""
    question = dice.pick(FAMILIES[family].wordings).format(**words)
    return Puzzle((), question, answer, tuple(answers), ordered=tuple(answers) == TRUTH or answers[0] == ORDINALS[0])


def judged(dice: Dice, family: str, truth: bool, **words: str) -> Puzzle:
    return again(dice, family, TRUTH[not truth], TRUTH, **words)


def single(dice: Dice, things: Sequence[Obj]) -> Iterator[Puzzle]:
    """What the families over one picture can ask about these things: one question about each of them, so that no answer
    can be read off another, and some about all of them."""
    inked = Counter(thing.colour for thing in things)
    shaped = Counter(thing.shape for thing in things)
    for thing in things:
        yield dice.pick(list(about(dice, thing, things, inked, shaped)))
    asked_for = dice.pick((dice.pick(things).colour, dice.below(len(INKS))))
    yes, no = dice.take(SAYINGS, 2)
    yield again(dice, "rule", yes if asked_for in inked else no, (yes, no), colour=INKS[asked_for], yes=yes, no=no)
    ranked = inked.most_common(2)
    if len(ranked) > 1 and ranked[0][1] > ranked[1][1]:
        yield again(dice, "most", INKS[ranked[0][0]], INKS)
    for one, other in pairwise(dice.shuffled(things)):
        if inked[one.colour] == inked[other.colour] == 1 and one.place + other.place != len(PLACES) - 1:
            yield beside(dice, one, other)


def about(dice: Dice, thing: Obj, things: Sequence[Obj], inked: Counter[int], shaped: Counter[int]) -> Iterator[Puzzle]:
    """What can be asked about one thing."""
    ink, shape, size = INKS[thing.colour], SHAPES[thing.shape], SIZES[thing.size]
    yield again(dice, "count", NUMBERS[inked[thing.colour] - 1], NUMBERS, colour=ink)
    yield claim(dice, thing, things)
    if inked[thing.colour] == 1:
        yield from by_colour(dice, thing)
        make = f"{size} {shape}"
        told = make if dice.chance(0.5) else dice.pick([like for like in MAKES if set(like.split()) & {size, shape}])
        yield judged(dice, "verify_make", told == make, colour=ink, make=told)
    if shaped[thing.shape] == 1:
        yield from by_shape(dice, thing)


def by_colour(dice: Dice, thing: Obj) -> Iterator[Puzzle]:
    """What its colour can be asked for, when nothing else has it."""
    ink = INKS[thing.colour]
    yield again(dice, "shape_of", SHAPES[thing.shape], SHAPES, colour=ink)
    yield again(dice, "size_of", SIZES[thing.size], SIZES, colour=ink)
    yield again(dice, "where_colour", PLACES[thing.place], PLACES, colour=ink)
    yield again(dice, "make_of", f"{SIZES[thing.size]} {SHAPES[thing.shape]}", MAKES, colour=ink)


def by_shape(dice: Dice, thing: Obj) -> Iterator[Puzzle]:
    """What its shape can be asked for, when nothing else has it."""
    yield again(dice, "colour_of", INKS[thing.colour], INKS, shape=SHAPES[thing.shape])
    yield again(dice, "where_shape", PLACES[thing.place], PLACES, shape=SHAPES[thing.shape])


def claim(dice: Dice, thing: Obj, things: Sequence[Obj]) -> Puzzle:
    """A claim that something is there: the thing, or one like it in colour or in shape."""
    pairs = [(thing.colour, thing.shape), (dice.below(len(INKS)), thing.shape), (thing.colour, dice.below(len(SHAPES)))]
    pair = pairs[dice.weighted((0, 1, 2), (2, 1, 1))]
    truth = any((other.colour, other.shape) == pair for other in things)
    return judged(dice, "verify_colour", truth, colour=INKS[pair[0]], shape=SHAPES[pair[1]])


def beside(dice: Dice, one: Obj, other: Obj) -> Puzzle:
    """A claim about two things in one row or column; half of the claims are the other way round."""
    true = next(name for name, (here, there) in RELATIONS.items() if step(one, other) == there - here)
    false = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[true]
    truth = dice.chance(0.5)
    words = {"colour": INKS[one.colour], "second": INKS[other.colour], "relation": true if truth else false}
    return judged(dice, "beside", truth, **words)


def step(one: Obj, other: Obj) -> int:
    """From one place to the other: 1 to the right, 2 down."""
    return other.place - one.place


def several(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """What the families over several pictures can ask about these, and what is where in each of them."""
    contents = [scene.objects for scene in scenes]
    names = [[f"{INKS[thing.colour]} {SHAPES[thing.shape]}" for thing in things] for things in contents]
    answers = tuple(dict.fromkeys(name for row in names for name in row))
    for ordinal, things, row in zip(ORDINALS, contents, names, strict=False):
        thing, name = dice.pick(list(zip(things, row, strict=True)))
        yield Puzzle((), f"What is {PLACES[thing.place]} in the {ordinal} picture?", name, answers)
    looks = [look(things) for things in contents if len({(t.colour, t.shape, t.size) for t in things}) == 1]
    if len(looks) == len(scenes):
        yield from compared(dice, looks)
    if len(scenes) == 2:
        yield from paired(dice, *contents)
    else:
        yield from sought(dice, contents)


def look(things: Sequence[Obj]) -> tuple[int, int, int, int]:
    """What things that are all alike look like, in the order of `ASPECTS`."""
    return things[0].colour, things[0].shape, things[0].size, len(things) - 1


def compared(dice: Dice, looks: Sequence[tuple[int, int, int, int]]) -> Iterator[Puzzle]:
    """Questions about the aspects in which pictures agree."""
    for aspect, values in zip(ASPECTS, zip(*looks, strict=True), strict=True):
        if len(values) == 2:
            yield judged(dice, "same", values[0] == values[1], aspect=aspect)
        if len(values) == 3 and values[0] == values[1]:
            yield judged(dice, "fits", values[2] == values[0], aspect=aspect)
        odd = [place for place, value in enumerate(values) if values.count(value) == 1]
        if len(values) > 2 and len(odd) == 1:
            ordinals = ORDINALS[: len(values)]
            yield again(dice, f"odd_{len(values)}", ordinals[odd[0]], ordinals, aspect=aspect)
    changed = [aspect for aspect, a, b in zip(ASPECTS, looks[0], looks[1], strict=True) if a != b]
    if len(looks) == 2 and len(changed) == 1:
        yield again(dice, "changed", changed[0], ASPECTS)


def paired(dice: Dice, first: Sequence[Obj], second: Sequence[Obj]) -> Iterator[Puzzle]:
    """Questions about the colours of two pictures."""
    counts = [Counter(thing.colour for thing in things) for things in (first, second)]
    for colour in dice.shuffled(sorted(counts[0] | counts[1]))[:3]:
        ink, left, right = INKS[colour], counts[0][colour], counts[1][colour]
        yield judged(dice, "both", left > 0 and right > 0, colour=ink)
        if left != right:
            yield again(dice, "more", ORDINALS[left < right], ORDINALS[:2], colour=ink)
        if left + right <= len(NUMBERS):
            yield again(dice, "total", NUMBERS[left + right - 1], NUMBERS, colour=ink)
    if len(first) == len(second) == 1:
        ink, shape = INKS[first[0].colour], SHAPES[second[0].shape]
        wrong = (f"{INKS[second[0].colour]} {shape}", f"{ink} {SHAPES[first[0].shape]}")
        truth = f"{ink} {shape}"
        yield again(dice, "mix", truth, (truth, *(name for name in wrong if name != truth)))


def sought(dice: Dice, contents: Sequence[Sequence[Obj]]) -> Iterator[Puzzle]:
    """Which of three or four pictures shows something that one of them alone shows."""
    shown = Counter(pair for things in contents for pair in {(thing.colour, thing.shape) for thing in things})
    ordinals = ORDINALS[: len(contents)]
    for ordinal, things in zip(ordinals, contents, strict=True):
        pair = (things[0].colour, things[0].shape)
        if shown[pair] == 1:
            words = {"colour": INKS[pair[0]], "shape": SHAPES[pair[1]]}
            yield again(dice, f"which_colour_{len(contents)}", ordinal, ordinals, **words)
