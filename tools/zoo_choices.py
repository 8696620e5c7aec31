"""What the tiny encoder is pretrained on: questions of the text corpus that offer a choice, and sentences to compare.

An encoder chooses among options or rates with a number. Where the options are a judgement (yes or no, positive or
negative) they always come in the same order, as labels of a task do; else in the order that the question shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.stories import (
    COLOURS,
    DAYS,
    MAKERS,
    MOVABLE,
    PEOPLE,
    PLACES,
    Exchange,
    Fact,
    TextCorpus,
)
from pfl_platform.data import Sample, Turn

JUDGEMENTS = (("no", "yes"), ("negative", "positive"))
FROM_CORPUS = ("kind", "opposite", "reading", "claim", "with_word", "opinion", "feeling", "same_meaning")
POOLS: Mapping[str, tuple[str, ...]] = {
    "person": PEOPLE,
    "thing": MOVABLE,
    "place": PLACES,
    "colour": COLOURS,
    "day": DAYS,
}
RATED = 0.1
"""Share of samples that are rated."""


@dataclass(frozen=True)
class Choices(TextCorpus):
    """Sample i is a function of (seed, i) alone; each has options, or a number from 0 to 5 as its answer.

    >>> all(Choices(0).sample(index).options for index in range(5) if not Choices(0).sample(index).gold[0].isdigit())
    True
    """

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "choices", index)
        make = alike if dice.chance(RATED) else dice.pick(tuple(CHOOSERS.values()))
        return as_sample(f"choice-{self.seed}-{index}", make(dice))


def as_sample(name: str, exchange: Exchange) -> Sample:
    return Sample(
        name, (Turn(exchange.prompt, exchange.answer),), options=exchange.options, references=exchange.references
    )


def offering(maker: Callable[[Dice], Exchange]) -> Callable[[Dice], Exchange]:
    """Draws until a question has options; yes and no are options wherever they are the answer."""

    def make(dice: Dice) -> Exchange:
        while True:
            exchange = maker(dice)
            for judgement in JUDGEMENTS:
                if exchange.answer in judgement or set(exchange.options) == set(judgement):
                    answer = next(word for word in (exchange.answer, *exchange.references) if word in judgement)
                    return replace(exchange, answer=answer, options=judgement, references=())
            if exchange.options:
                return exchange

    return make


def follows(dice: Dice) -> Exchange:
    """Two sentences: the second follows from the first, or contradicts it, or neither."""
    told = _fact(dice)
    outcome = dice.below(3)
    part = dice.pick(("place", "colour"))
    other = _changed(dice, told, part) if outcome == 2 else told
    said = (
        f"The {other.thing} is {other.colour}." if part == "colour" else f"The {other.thing} is in the {other.place}."
    )
    if outcome == 1:
        said = f"{dice.pick(PEOPLE)} has a {dice.pick([thing for thing in MOVABLE if thing != told.thing])}."
    answers = ("it follows", "it may be", "it is wrong")
    return Exchange(f"{told.sentence} What about this? {said}", answers[outcome], answers)


def alike(dice: Dice) -> Exchange:
    """Two sentences and how many of their five parts are the same."""
    first = _fact(dice)
    second = first
    changed = dice.take(tuple(POOLS), dice.below(len(POOLS) + 1))
    for part in changed:
        second = _changed(dice, second, part)
    answer = str(len(POOLS) - len(changed))
    return Exchange(f"How alike are these sentences? {first.sentence} {second.sentence}", answer)


def _fact(dice: Dice) -> Fact:
    return Fact(**{field.name: dice.pick(POOLS[field.name]) for field in fields(Fact)})


def _changed(dice: Dice, fact: Fact, part: str) -> Fact:
    """The same with another word for one part."""
    word = dice.pick([word for word in POOLS[part] if word != getattr(fact, part)])
    return replace(fact, **{part: word})


CHOOSERS: Mapping[str, Callable[[Dice], Exchange]] = {
    **{
        name: offering(maker)
        for maker in dict.fromkeys(MAKERS)
        for name in [maker.__name__.strip("_")]
        if name in FROM_CORPUS
    },
    "follows": follows,
}
"""Questions with options, by skill."""
