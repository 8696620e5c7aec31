"""ROUGE-L by the rouge-score library."""

from __future__ import annotations

from functools import cache
from typing import Any

from pfl_benchmarks.metrics.text import words
from pfl_platform.data import Sample


class _Words:
    """A tokenizer for languages outside a-z, which the library's own drops."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _scorer(kind: str, use_stemmer: bool, any_language: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=use_stemmer, tokenizer=_Words() if any_language else None)


def f_measure(kind: str, prediction: str, answer: str, use_stemmer: bool, any_language: bool) -> float:
    """The library's F-measure of one kind, `rouge1` or `rougeL`."""
    return float(_scorer(kind, use_stemmer, any_language).score(answer, prediction)[kind].fmeasure)


def rouge_l(prediction: str, answer: str, *, use_stemmer: bool = True, any_language: bool = False) -> float:
    """F-measure of the longest common subsequence of words (Lin, 2004).

    `use_stemmer` compares English word stems, as Super-NaturalInstructions does; `any_language` keeps words outside
    a-z and 0-9 (no stems then).

    >>> rouge_l("the cat sat", "the cat lay down")    # common subsequence 2; precision 2/3, recall 2/4
    0.5714285714285715
    >>> rouge_l("cats", "cat"), rouge_l("cats", "cat", use_stemmer=False)
    (1.0, 0.0)
    >>> rouge_l("да", "да"), rouge_l("да", "да", any_language=True)
    (0.0, 1.0)
    """
    return f_measure("rougeL", prediction, answer, use_stemmer, any_language)


def score(prediction: str, sample: Sample, *, use_stemmer: bool = True, any_language: bool = False) -> float:
    """The best ROUGE-L over the accepted answers."""
    return max(rouge_l(prediction, gold, use_stemmer=use_stemmer, any_language=any_language) for gold in sample.gold)
