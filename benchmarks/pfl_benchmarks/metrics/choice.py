"""Accuracy of multi-choice questions: which option does an answer name?

An answer may give the option's text, its letter where the question letters its options, or a sentence around either.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from pfl_benchmarks.metrics import exact
from pfl_benchmarks.metrics.text import bare, plain
from pfl_platform.data import Sample

_MARKED = re.compile(r"(?<![\w'])\(?([A-Za-z])(?:\)|[.:](?=\s|$))")  # "B." "B:" "B)" "(b)"
_STANDALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_ARTICLE = re.compile(r"(?:^|(?<=[.!?]\s))A(?=\s+(?!and\b|or\b|is\b)[a-z])")  # the capital of a sentence, not a letter


def letters_of(sample: Sample) -> Mapping[str, int]:
    """Letter -> option, for a question that letters its options (`A. deer`, `A: deer`, `(A) deer`) or asks for letters.

    >>> from pfl_platform.data import Turn
    >>> letters_of(Sample("0", (Turn("Which? Choice list:[A. deer | B. frog]", "deer"),), options=("deer", "frog")))
    {'A': 0, 'B': 1}
    >>> letters_of(Sample("0", (Turn("Choice list:[yes, no]", "yes"),), options=("yes", "no")))
    {}
    """
    options = sample.options
    own = [option.strip().upper() for option in options]
    if all(len(text) == 1 and text in string.ascii_uppercase for text in own):
        return {letter: index for index, letter in enumerate(own)}
    labels = string.ascii_uppercase[: len(options)]
    question = sample.turns[0].human
    shown = all(
        re.search(rf"(?<!\w){label}\s*[.:)]\s*{re.escape(option)}", question)
        for label, option in zip(labels, options, strict=False)
    )
    asked = any(len(gold.strip()) == 1 and gold.strip().upper() in labels for gold in sample.gold)
    return {label: index for index, label in enumerate(labels)} if shown or asked else {}


def _same(answer: str, options: Sequence[str]) -> int | None:
    """The option whose text the answer is. Punctuation counts only where it tells options apart (C, C++, C#)."""
    shared = {option.split()[0] for option in options if option.split()}
    rests = [" ".join(option.split()[1:]) for option in options]  # "2" for "Image 2"
    for form, texts in ((plain, options), (bare, options), (bare, rests if len(shared) == 1 else ())):
        forms = [form(text) for text in texts]
        if form(answer) in forms and len(set(forms)) == len(forms):
            return forms.index(form(answer))
    return None


def _mentioned(answer: str, options: Sequence[str]) -> set[int]:
    """Options whose words stand in the answer; a longer option hides a shorter one inside it."""
    found, rest = set(), f" {bare(answer)} "
    for index in sorted(range(len(options)), key=lambda index: -len(options[index])):
        words = bare(options[index])
        if words and not (len(words) == 1 and words.isalpha()) and f" {words} " in rest:  # "a" is an article, too
            found.add(index)
            rest = rest.replace(f" {words} ", "  ")
    return found


def chosen(answer: str, options: Sequence[str], letters: Mapping[str, int]) -> int | None:
    """Index of the only option that the answer names, else None.

    >>> animals, letters = ["deer", "horse", "bird", "frog"], {"A": 0, "B": 1, "C": 2, "D": 3}
    >>> [chosen(text, animals, letters) for text in ("bird", "C", "(c).", "C. bird", "The answer is C", "a Bird!")]
    [2, 2, 2, 2, 2, 2]
    >>> [chosen(text, animals, letters) for text in ("deer or bird", "A. bird", "A and B", "fish", "")]
    [None, None, None, None, None]
    >>> chosen("dark green", ["green", "dark green"], {}), chosen("2", ["Image 1", "Image 2"], {})
    (1, 1)
    """
    exactly = _same(answer, options)
    if exactly is not None:
        return exactly
    alone = bare(answer).upper()
    if alone in letters:
        return letters[alone]
    named = _mentioned(answer, options)
    marks = _MARKED.findall(answer) or ([] if named else _STANDALONE.findall(_ARTICLE.sub("", answer)))
    named |= {letters[mark.upper()] for mark in marks if mark.upper() in letters}
    return named.pop() if len(named) == 1 else None


def score(prediction: str, sample: Sample) -> float:
    """1 when the prediction names the right option and no other; an exact match where no options are known.

    >>> from pfl_platform.data import Turn
    >>> sample = Sample("0", (Turn("Which? Choice list:[A. deer | B. frog]", "B"),), options=("deer", "frog"))
    >>> [score(text, sample) for text in ("B", "frog", "B. frog", "It is a frog.", "A", "deer and frog")]
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    if not sample.options:
        return exact.score(prediction, sample)
    letters = letters_of(sample)
    right = {chosen(gold, sample.options, letters) for gold in sample.gold} - {None}
    if not right:  # the accepted answer is none of the options shown
        return exact.score(prediction, sample)
    return float(chosen(prediction, sample.options, letters) in right)
