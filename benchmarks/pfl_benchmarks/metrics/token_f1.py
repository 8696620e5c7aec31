"""F1 between the words of a prediction and those of an accepted answer."""

from __future__ import annotations

from collections import Counter

from pfl_benchmarks.metrics.text import words
from pfl_platform.data import Sample


def f1(prediction: str, answer: str, *, multiset: bool = False) -> float:
    """Harmonic mean of precision and recall over words.

    As sets a repeated word counts once; with `multiset` it counts as often as it stands.

    >>> f1("a red car", "the red car")     # 2 of 3 words are right, 2 of 3 are found
    0.6666666666666666
    >>> f1("no no no", "no"), f1("no no no", "no", multiset=True)   # multiset: precision 1/3, recall 1
    (1.0, 0.5)
    >>> f1("", "red")
    0.0
    """
    predicted, wanted = Counter(words(prediction)), Counter(words(answer))
    if not multiset:
        predicted, wanted = Counter(set(predicted)), Counter(set(wanted))
    common = (predicted & wanted).total()
    if common == 0:
        return float(predicted == wanted)
    return 2 * common / (predicted.total() + wanted.total())


def score(prediction: str, sample: Sample, *, multiset: bool = False) -> float:
    """The best F1 over the accepted answers."""
    return max(f1(prediction, gold, multiset=multiset) for gold in sample.gold)
