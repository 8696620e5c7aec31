"""Keyword rules: which subset of a data set a question belongs to.

HFLB's subsets are named in FedMosaic's Table 13, and "keywords or GPT" chose them; the words are not published. AQUA's
stand in the names of its subsets. Those of NLVR2 are ours, in the order of the names: the first rule that fits holds.
"""

from __future__ import annotations

import re

ART = (
    re.compile(r"\bst(?:and|ands|anding|ood)\b"),
    re.compile(r"\bs(?:it|its|itting|at)\b"),
    re.compile(r"\b(?:wear|hold|walk|talk)(?:s|ing)?\b"),
)
NEGATION = "no not none never nothing neither all every each only any still again"
SPACE = "left right above below behind front next near between under top bottom facing more fewer less same"
NUMBERS = "one two three four five six seven eight nine ten exactly least most pair total"
PAIRS = (
    re.compile(rf"\b(?:{'|'.join(NEGATION.split())})\b|n't\b"),
    re.compile(rf"\b(?:{'|'.join(SPACE.split())}|\w+er than)\b"),
    re.compile(rf"\b(?:{'|'.join(NUMBERS.split())}|\d+|there (?:is|are))\b"),
)


def subset_of_art(question: str) -> int:
    """0 standing, 1 sitting, 2 wear, hold, walk or talk, 3 any other.

    >>> [subset_of_art(text) for text in ("who sit on a couch", "what stand next to", "what do he wear", "what be red")]
    [1, 0, 2, 3]
    """
    return _first(ART, question)


def subset_of_pairs(sentence: str) -> int:
    """0 negation and universals, 1 space and comparison, 2 numbers and existence, 3 any other (coordination,
    coreference).

    >>> said = ("No dog is wet.", "A dog is left of a cat.", "There are two dogs.", "The dogs and their owners run.")
    >>> [subset_of_pairs(text) for text in said]
    [0, 1, 2, 3]
    """
    return _first(PAIRS, sentence)


def _first(rules: tuple[re.Pattern[str], ...], text: str) -> int:
    return next((place for place, rule in enumerate(rules) if rule.search(text.lower())), len(rules))


def spoken_of(text: str) -> str:
    """A word without its plural, so that no option says the same as another.

    >>> spoken_of("Dogs "), spoken_of("glass")
    ('dog', 'glass')
    """
    plain = text.strip().lower()
    return plain[:-1] if plain.endswith("s") and not plain.endswith("ss") else plain
