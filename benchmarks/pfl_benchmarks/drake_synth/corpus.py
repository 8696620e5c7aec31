"""What the tiny backbones are pretrained on, and the public set: endless, addressed, in plain English.

`Corpus` shows general visual skills in everyday words. The made-up words of the clients occur in two ways that teach
no lasting meaning: in reading tasks without any meaning, and in questions that define them afresh each time. So a
backbone can read and write them, and an adapter has only their grounding to learn. `TextCorpus` (see `stories`) is for
backbones without eyes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pfl_benchmarks.drake_synth.dice import Dice, digest_of
from pfl_benchmarks.drake_synth.drawing import Obj
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lazy import LazySamples
from pfl_benchmarks.drake_synth.puzzles import COUNTS, TRUTH, Brief, Family, Puzzle
from pfl_benchmarks.drake_synth.render import Asked, Form, asked, placed, sample_of
from pfl_benchmarks.drake_synth.stories import TextCorpus
from pfl_benchmarks.drake_synth.words import ALL_MADE_UP, MADE_UP, PLAIN, Concept, Lexicon
from pfl_platform.data import Sample

__all__ = ["Corpus", "PublicSet", "TextCorpus"]

READING = 0.08
"""Share of samples that only read made-up words."""
DEFINING = 0.15
"""Share of samples that define made-up words and use them."""
FAMILY_WEIGHTS = {"colour_of": 2.0, "shape_of": 2.0, "count": 1.5, "same": 1.5}
"""How often a family is drawn against the others (1)."""
FORMS: tuple[Form, ...] = ("list", "open", "yes")


@dataclass(frozen=True)
class Corpus:
    """Sample i is a function of (seed, i) alone.

    >>> corpus = Corpus(0)
    >>> corpus.sample(3) == corpus.sample(3), corpus.sample(3) == Corpus(1).sample(3)
    (True, False)
    """

    seed: int

    def sample(self, index: int) -> Sample:
        """One question with one to four pictures of the corpus part."""
        dice = Dice(self.seed, "corpus", index)
        lot = dice.chance(READING), dice.chance(DEFINING)
        if lot[0]:
            text, contents = _reading(dice)
        else:
            names = tuple(FAMILIES)
            family = FAMILIES[dice.weighted(names, [FAMILY_WEIGHTS.get(name, 1.0) for name in names])]
            text, contents = _defining(family, dice) if lot[1] else _plain(family, dice)
        scenes = [placed(objects, dice, "corpus") for objects in contents]
        return sample_of(f"corpus-{self.seed}-{index}", text, scenes)


class PublicSet(LazySamples):
    """The first `size` samples of a corpus whose seed is an address of its own, far from those of pretraining."""

    def __init__(self, data_seed: int, size: int) -> None:
        super().__init__(size)
        self.corpus = Corpus(int.from_bytes(digest_of("public", data_seed)[:6], "big"))

    def draw(self, index: int) -> Sample:
        return self.corpus.sample(index)


Contents = tuple[tuple[Obj, ...], ...]


def draw(family: Family, lexicon: Lexicon, dice: Dice) -> Puzzle:
    """A puzzle of a family with focus, outcome and wording at random."""
    focus = dice.pick(lexicon.named(family.focus))
    brief = Brief(dice, lexicon, focus, dice.below(family.outcomes), dice.pick(family.wordings))
    return family.make(brief)


def form_for(puzzle: Puzzle, dice: Dice) -> Form:
    """A form that suits the puzzle; judgements are never open."""
    form = dice.pick(FORMS)
    if puzzle.answers == TRUTH:
        return dice.pick(("list", "yes")) if form == "open" else form
    return "list" if form == "yes" else form


def _plain(family: Family, dice: Dice) -> tuple[Asked, Contents]:
    puzzle = draw(family, PLAIN, dice)
    return asked(puzzle, form_for(puzzle, dice), dice, 2 + dice.below(3)), puzzle.scenes


def _defining(family: Family, dice: Dice) -> tuple[Asked, Contents]:
    """A question with made-up words of one kind that are defined in front of it."""
    kind: Concept = dice.pick(("colour", "colour", "shape", "number", "aspect", family.focus))
    if kind not in MADE_UP:
        kind = "colour"
    concepts = dice.take(PLAIN.named(kind), len(MADE_UP[kind]))
    lexicon = PLAIN.renamed(kind, dict(zip(concepts, dice.shuffled(MADE_UP[kind]), strict=True)))
    puzzle = draw(family, lexicon, dice)
    text = asked(puzzle, form_for(puzzle, dice), dice, 2 + dice.below(2))
    spoken = set(re.findall(r"\w+", f"{text.question} {text.answer}"))
    used = [concept for concept in concepts if lexicon.word(kind, concept) in spoken]
    meaning = "".join(f"{lexicon.word(kind, c)} is {PLAIN.word(kind, c)}. " for c in dice.shuffled(used))
    return replace(text, question=meaning + text.question), puzzle.scenes


READINGS = (
    "Which word is written here: {first}.",
    "Repeat the word {first}.",
    "Which word comes first: {first} {second}?",
    "Which word comes last: {second} {first}?",
    "Choose the word {first}.",
)


def _reading(dice: Dice) -> tuple[Asked, Contents]:
    """Made-up words without meaning, next to a picture that does not matter."""
    first, second, third = dice.take(ALL_MADE_UP, 3)
    puzzle = Puzzle((), dice.pick(READINGS).format(first=first, second=second), first, (first, second, third))
    thing = Obj(dice.below(COUNTS["colour"]), dice.below(COUNTS["shape"]), dice.below(COUNTS["size"]))
    return asked(puzzle, dice.pick(("list", "open")), dice, 2 + dice.below(2)), ((thing,),)
