"""Questions about pictures. A maker draws one about the pictures of a deck.

`kind` is the target of a question and `turn` its number, so that right answers stand at every place equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

LETTERS = "ABCD"
IMAGES = ("Image 1", "Image 2", "Image 3")
ANIMALS = ("fish", "insect", "mammal", "reptile", "bird", "cat", "deer", "dog", "frog", "horse")


@dataclass(frozen=True)
class Question:
    pictures: Sequence[str]
    text: str
    answer: str


@dataclass
class Deck:
    """Stored pictures of one owner and split: kind -> path -> detail. Dealt in shuffled order, again and again."""

    rng: np.random.Generator
    kinds: Mapping[str, Mapping[str, str]]
    _dealt: dict[str, Iterator[str]] = field(default_factory=dict)

    def picture(self, kind: str) -> str:
        """The next picture of a kind."""
        if kind not in self._dealt:
            self._dealt[kind] = cycle(self.shuffled(list(self.kinds[kind])))
        return next(self._dealt[kind])

    def pictures(self, kind: str, count: int) -> list[str]:
        """`count` different pictures of a kind."""
        return self.shuffled(list(self.kinds[kind]))[:count]

    def others(self, kind: str, count: int) -> list[str]:
        """`count` different kinds besides this one."""
        return self.shuffled([name for name in self.kinds if name != kind])[:count]

    def by_detail(self, kind: str) -> tuple[str, str, str]:
        """Three different pictures of a kind: two agree in their detail, the third does not."""
        details = self.kinds[kind]
        first = self.picture(kind)
        rest = [path for path in self.shuffled(list(details)) if path != first]
        alike = [path for path in rest if details[path] == details[first]]
        unlike = [path for path in rest if details[path] != details[first]]
        return (first, alike[0], unlike[0]) if alike else self.by_detail(kind)

    def shuffled(self, values: Sequence[str]) -> list[str]:
        return [values[int(index)] for index in self.rng.permutation(len(values))]


Maker = Callable[[Deck, str, int], Question]


def listed(pictures: Sequence[str], text: str, options: Sequence[str], answer: str) -> Question:
    return Question(pictures, f"{text}\nChoice list:[{', '.join(options)}]. Your answer is:", answer)


def placed(right: str, wrong: Sequence[str], place: int) -> list[str]:
    return [*wrong[:place], right, *wrong[place:]]


def lettered_kind(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        options = placed(kind, deck.others(kind, 3), turn % 4)
        shown = " | ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
        text = f"Which {noun} does the image show?\nChoice list:[{shown}]. Your answer is:"
        return Question([deck.picture(kind)], text, LETTERS[turn % 4])

    return make


def listed_kind(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        return listed([deck.picture(kind)], f"What {noun} is this?", placed(kind, deck.others(kind, 2), turn % 3), kind)

    return make


def named_kind(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        return Question([deck.picture(kind)], f"What {noun} does the image show?\nYour answer is:", kind)

    return make


def same_kind(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        same = turn % 2 == 0
        pictures = deck.pictures(kind, 2) if same else [deck.picture(kind), deck.picture(deck.others(kind, 1)[0])]
        return listed(pictures, f"Do the two images show the same {noun}?", ("True", "False"), str(same))

    return make


def which_image(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        pictures = placed(deck.picture(kind), [deck.picture(other) for other in deck.others(kind, 2)], turn % 3)
        return listed(pictures, f"Which image shows the {noun} {kind}?", IMAGES[:3], IMAGES[turn % 3])

    return make


def odd_one(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        pictures = placed(deck.picture(kind), deck.pictures(deck.others(kind, 1)[0], 2), turn % 3)
        text = f"Which image shows another {noun} than the other two?"
        return listed(pictures, text, IMAGES[:3], IMAGES[turn % 3])

    return make


def count_of(noun: str) -> Maker:
    def make(deck: Deck, kind: str, turn: int) -> Question:
        count = 1 + turn % 3
        wrong = [deck.picture(other) for other in deck.others(kind, 3 - count)]
        text = f"How many of the three images show the {noun} {kind}?\nYour answer is:"
        return Question(deck.shuffled([*deck.pictures(kind, count), *wrong]), text, str(count))

    return make


def larger_digit(deck: Deck, kind: str, turn: int) -> Question:
    small, large = sorted((kind, deck.others(kind, 1)[0]))
    pictures = placed(deck.picture(large), [deck.picture(small)], turn % 2)
    return listed(pictures, "Which image shows the larger digit?", IMAGES[:2], IMAGES[turn % 2])


def sum_of_digits(deck: Deck, kind: str, turn: int) -> Question:
    other = deck.others(kind, 1)[0]
    total = int(kind) + int(other)
    wrong = deck.shuffled([str(value) for value in range(max(0, total - 3), total + 4) if value != total])[:2]
    pictures = [deck.picture(kind), deck.picture(other)]
    return listed(pictures, "What is the sum of the two digits?", placed(str(total), wrong, turn % 3), str(total))


def is_animal(deck: Deck, kind: str, turn: int) -> Question:
    """Yes and no in turn; a target that does not fit is replaced by one that does."""
    wanted = turn % 2 == 0
    fitting = [name for name in (kind, *deck.others(kind, len(deck.kinds))) if (name in ANIMALS) == wanted]
    text = "Does the image show an animal?"
    return listed([deck.picture(fitting[0])], text, ("yes", "no"), "yes" if wanted else "no")


def same_character(deck: Deck, kind: str, turn: int) -> Question:
    first, alike, unlike = deck.by_detail(kind)
    same = turn % 2 == 0
    text = "Do the two images show the same character?"
    return listed([first, alike if same else unlike], text, ("True", "False"), str(same))


def matching_character(deck: Deck, kind: str, turn: int) -> Question:
    first, alike, unlike = deck.by_detail(kind)
    pictures = [first, *placed(alike, [unlike], turn % 2)]
    text = "Which image shows the same character as Image 1?"
    return listed(pictures, text, IMAGES[1:3], IMAGES[1 + turn % 2])
