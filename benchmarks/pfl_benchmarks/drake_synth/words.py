"""What concepts are called: in plain English, or by the made-up words of a lexicon.

A concept is an index of one of seven kinds. A question family speaks of concepts only; the lexicon says the words. So
a client's task is a plain skill seen through words whose meaning nobody told the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES

Concept = Literal["colour", "shape", "size", "place", "number", "aspect", "make"]

NUMBERS = ("one", "two", "three", "four")
ASPECTS = ("colour", "shape", "size", "number")
MAKES = tuple(f"{size} {shape}" for size in SIZES for shape in SHAPES)
"""The makes of an object: size and shape together, at index size * 6 + shape."""

COLOUR_WORDS = ("blick", "dax", "fep", "gorp", "mip", "nurl", "wug", "zan")
SHAPE_WORDS = ("bem", "koba", "lof", "sib", "tiv", "vash")
NUMBER_WORDS = ("ek", "dru", "pel", "rin")
ASPECT_WORDS = ("hask", "kren", "yilt", "zorp")
MAKE_WORDS = ("drin", "fump", "obi", "rukl", "selp", "toma")
MADE_UP: Mapping[Concept, tuple[str, ...]] = {
    "colour": COLOUR_WORDS,
    "shape": SHAPE_WORDS,
    "number": NUMBER_WORDS,
    "aspect": ASPECT_WORDS,
    "make": MAKE_WORDS,
}
ALL_MADE_UP = tuple(word for words in MADE_UP.values() for word in words)


@dataclass(frozen=True)
class Lexicon:
    """Per kind of concept, the word of each concept that has one (index -> word).

    >>> PLAIN.word("colour", 2), PLAIN.word("make", 7)
    ('blue', 'big square')
    """

    words: Mapping[Concept, Mapping[int, str]]

    def word(self, kind: Concept, index: int) -> str:
        return self.words[kind][index]

    def named(self, kind: Concept) -> tuple[int, ...]:
        """The concepts of a kind that can be asked for."""
        return tuple(self.words[kind])

    def renamed(self, kind: Concept, words: Mapping[int, str]) -> Lexicon:
        """This lexicon with other words for one kind."""
        return replace(self, words={**self.words, kind: dict(words)})


PLAIN = Lexicon(
    {
        "colour": dict(enumerate(COLOURS)),
        "shape": dict(enumerate(SHAPES)),
        "size": dict(enumerate(SIZES)),
        "place": dict(enumerate(PLACES)),
        "number": dict(enumerate(NUMBERS)),
        "aspect": dict(enumerate(ASPECTS)),
        "make": dict(enumerate(MAKES)),
    }
)
