"""The made-up languages of the three groups: the same words, other meanings.

Meanings are cyclic shifts, so that no word means the same in two languages. One exception is wanted: `ek`, `dru`, `pel`
and `rin` name the same numbers in the second and third, which relates one client of each.
"""

from __future__ import annotations

from collections.abc import Iterable

from pfl_benchmarks.drake_synth.drawing import SHAPES
from pfl_benchmarks.drake_synth.words import (
    ASPECT_WORDS,
    COLOUR_WORDS,
    MADE_UP,
    MAKE_WORDS,
    NUMBER_WORDS,
    PLAIN,
    SHAPE_WORDS,
    Concept,
    Lexicon,
)


def _shifted(words: tuple[str, ...], shift: int) -> dict[int, str]:
    """Word k means concept (5 k + shift) mod n, listed by concept; 5 has no common factor with n (4, 6, 8)."""
    meanings = {(5 * k + shift) % len(words): word for k, word in enumerate(words)}
    return dict(sorted(meanings.items()))


def _makes(shift: int) -> dict[int, str]:
    """Six makes: both sizes of every other shape, from shape number `shift` on."""
    meanings = {(k // 3) * len(SHAPES) + (2 * (k % 3) + shift) % len(SHAPES): word for k, word in enumerate(MAKE_WORDS)}
    return dict(sorted(meanings.items()))


def _language(colour: int, shape: int, number: int, aspect: int, make: int) -> Lexicon:
    words: dict[Concept, dict[int, str]] = {
        "colour": _shifted(COLOUR_WORDS, colour),
        "shape": _shifted(SHAPE_WORDS, shape),
        "number": _shifted(NUMBER_WORDS, number),
        "aspect": _shifted(ASPECT_WORDS, aspect),
        "make": _makes(make),
    }
    return Lexicon({**PLAIN.words, **words})


LANGUAGES = {
    "visual-relation": _language(colour=0, shape=0, number=2, aspect=0, make=3),
    "reasoning": _language(colour=3, shape=2, number=0, aspect=1, make=0),
    "vqa": _language(colour=6, shape=4, number=0, aspect=2, make=1),
}
"""Group -> its language."""


def partial(language: Lexicon, kinds: Iterable[Concept]) -> Lexicon:
    """Plain English with the words of a language for some kinds of concepts."""
    result = PLAIN
    for kind in kinds:
        if kind not in MADE_UP:
            raise ValueError(f"no language has words of its own for {kind}")
        result = result.renamed(kind, language.words[kind])
    return result
