"""One kind of question asked again and again about the same pictures: what quizzes have too little of.

Whether a claim holds, how many there are, in what two pictures agree, which one differs: each of these is learned
all at once, after tens of thousands of answers. A quiz has one or two of a kind; a drill has up to eight, so that a
step of 32 rows gives two hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, SHAPES, SIZES, DrawnPicture, Obj, Scene
from pfl_benchmarks.drake_synth.puzzles import Puzzle
from pfl_benchmarks.drake_synth.render import Part, marks, placed
from pfl_benchmarks.drake_synth.single import SAYINGS
from pfl_benchmarks.drake_synth.words import NUMBERS
from pfl_platform.data import Sample, Turn
from zoo_quizzes import again, beside, claim, compared, judged, look, paired, sought, spoken

INKS = tuple(COLOURS)
KINDS = (len(COLOURS), len(SHAPES), len(SIZES), len(NUMBERS))
TURNS = 8


@dataclass(frozen=True)
class Drills:
    """Drill i is a function of (seed, bare, i) alone. bare: share of questions without a list of options.

    >>> all(turn.human.startswith(("Which picture", "In which")) for turn in Drills(0, 1.0).sample(2).turns[1:])
    True
    """

    seed: int
    bare: float
    part: Part = "corpus"

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "drills", str(self.bare), index)
        draw, ask = dice.pick(DRILLS)
        scenes = [placed(things, dice, self.part) for things in draw(dice)]
        puzzles = dice.shuffled(list(ask(dice, scenes)))[:TURNS]
        turns = [spoken(dice, puzzle, self.bare) for puzzle in puzzles]
        turns[0] = Turn(marks(len(scenes)) + turns[0].human, turns[0].answer)
        return Sample(f"drill-{self.seed}-{index}", tuple(turns), tuple(DrawnPicture(scene) for scene in scenes))


Contents = Sequence[Sequence[Obj]]


def unlike(dice: Dice) -> Contents:
    """One picture of two to four things that differ in colour and in shape."""
    count = 2 + dice.below(3)
    looks = zip(dice.take(range(len(COLOURS)), count), dice.take(range(len(SHAPES)), count), strict=True)
    return [[Obj(colour, shape, dice.below(len(SIZES))) for colour, shape in looks]]


def few_colours(dice: Dice, pictures: int) -> Contents:
    """Pictures of one to four things in two or three colours."""
    inks = dice.take(range(len(COLOURS)), 2 + dice.below(2))
    return [
        [Obj(dice.pick(inks), dice.below(len(SHAPES)), dice.below(len(SIZES))) for _ in range(1 + dice.below(4))]
        for _ in range(pictures)
    ]


def looks(dice: Dice) -> Contents:
    """Two to four pictures of things that are all alike: two agree in each aspect or not, by chance; of three or four,
    one differs in most aspects."""
    count = 2 + dice.below(3)
    rows = []
    sure = dice.below(len(KINDS))
    for aspect, size in enumerate(KINDS):
        usual, other = dice.take(range(size), 2)
        values = [usual] * count
        if dice.chance(0.5) if count == 2 else aspect == sure or dice.chance(0.8):
            values[dice.below(count)] = other
        rows.append(values)
    return [[Obj(colour, shape, size)] * (number + 1) for colour, shape, size, number in zip(*rows, strict=True)]


def grid(dice: Dice) -> Contents:
    """Three or four pictures of one thing each, no two the same, of two or three colours and shapes."""
    count = 3 + dice.below(2)
    inks = dice.take(range(len(COLOURS)), 2 + dice.below(2))
    shapes = dice.take(range(len(SHAPES)), 2 + dice.below(2))
    pairs = dice.take([(ink, shape) for ink in inks for shape in shapes], count)
    return [[Obj(ink, shape, dice.below(len(SIZES)))] for ink, shape in pairs]


def claims(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """What is there, of what kind it is, and what is beside what."""
    (scene,) = scenes
    things = scene.objects
    for _ in range(TURNS):
        thing = dice.pick(things)
        other = dice.pick(things)
        lot = dice.below(4)
        if lot == 0:
            make = f"{SIZES[other.size]} {SHAPES[other.shape]}"
            wrong = f"{SIZES[1 - thing.size]} {SHAPES[thing.shape]}"
            true = f"{SIZES[thing.size]} {SHAPES[thing.shape]}"
            told = dice.pick((true, true, wrong, make))
            yield judged(dice, "verify_make", told == true, colour=INKS[thing.colour], make=told)
        elif lot == 1 and thing.place + other.place != 3 and thing != other:
            yield beside(dice, thing, other)
        else:
            yield claim(dice, thing, things)


def counts(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """How many of each colour, and whether there are any."""
    (scene,) = scenes
    inks = [thing.colour for thing in scene.objects]
    for ink in dict.fromkeys(inks):
        yield again(dice, "count", NUMBERS[inks.count(ink) - 1], NUMBERS, colour=INKS[ink])
    for _ in range(4):
        yes, no = dice.take(SAYINGS, 2)
        ink = dice.pick((dice.pick(inks), dice.below(len(COLOURS))))
        yield again(dice, "rule", yes if ink in inks else no, (yes, no), colour=INKS[ink], yes=yes, no=no)


def agreements(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """In which aspects pictures agree, or which one differs."""
    yield from compared(dice, [look(scene.objects) for scene in scenes])


def pairs(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """The colours of two pictures together."""
    yield from paired(dice, *(scene.objects for scene in scenes))


def which(dice: Dice, scenes: Sequence[Scene]) -> Iterator[Puzzle]:
    """Which of the pictures shows this or that."""
    yield from sought(dice, [scene.objects for scene in scenes])


DRILLS: tuple[tuple[Callable[[Dice], Contents], Callable[[Dice, Sequence[Scene]], Iterator[Puzzle]]], ...] = (
    (unlike, claims),
    (lambda dice: few_colours(dice, 1), counts),
    (looks, agreements),
    (grid, which),
    (lambda dice: few_colours(dice, 2), pairs),
)
"""What is drawn, and what is asked about it."""
