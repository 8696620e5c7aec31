"""Mean of the Pearson and Spearman correlations of predicted numbers with the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pfl_platform.data import Sample
from pfl_platform.evaluation.surfaces import Prediction

UNREADABLE = -1.0
"""Stands for an answer without a number: below every score of the scale."""
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?![\w%])")


def number(text: str) -> float:
    """The first number in a text; `UNREADABLE` when there is none.

    >>> number("3.8"), number("About 4."), number("-2"), number("alike")
    (3.8, 4.0, -2.0, -1.0)
    """
    found = _NUMBER.search(text)
    return float(found.group()) if found else UNREADABLE


def correlation(predicted: Sequence[float], right: Sequence[float]) -> float:
    """Mean of Pearson's and Spearman's coefficients, -1 to 1; 0 where one of the lists does not vary.

    >>> round(correlation([1.0, 2.0, 4.0], [0.0, 1.0, 5.0]), 4)    # Pearson 0.9897, Spearman 1
    0.9949
    >>> correlation([3.0, 3.0], [1.0, 2.0])
    0.0
    """
    if len(set(predicted)) < 2 or len(set(right)) < 2:
        return 0.0
    from scipy.stats import pearsonr, spearmanr

    return (float(pearsonr(predicted, right)[0]) + float(spearmanr(predicted, right)[0])) / 2


def score(prediction: str, sample: Sample, *, scale: float = 5.0) -> float:
    """How near one number is, for a reader: 1 - |difference| / scale, at least 0."""
    return max(0.0, 1.0 - abs(number(prediction) - number(sample.gold[0])) / scale)


def total(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> float:
    """The correlation over all items; an answer without a number counts as -1."""
    return correlation([number(item.text) for item in predictions], [number(sample.gold[0]) for sample in samples])
