"""ROUGE-1 by the rouge-score library."""

from __future__ import annotations

from pfl_benchmarks.metrics.rouge_l import f_measure
from pfl_platform.data import Sample


def rouge_1(prediction: str, answer: str, *, use_stemmer: bool = False, any_language: bool = False) -> float:
    """F-measure of the words in common, each as often as both have it (Lin, 2004).

    >>> rouge_1("the cat sat", "a cat lay on the mat")    # the, cat: precision 2/3, recall 2/6
    0.4444444444444444
    >>> rouge_1("cats", "cat"), rouge_1("cats", "cat", use_stemmer=True)
    (0.0, 1.0)
    """
    return f_measure("rouge1", prediction, answer, use_stemmer, any_language)


def score(prediction: str, sample: Sample, *, use_stemmer: bool = False, any_language: bool = False) -> float:
    """The best ROUGE-1 over the accepted answers."""
    return max(rouge_1(prediction, gold, use_stemmer=use_stemmer, any_language=any_language) for gold in sample.gold)
