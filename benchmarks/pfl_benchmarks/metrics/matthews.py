"""Matthews correlation of the option that was chosen with the right one."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_benchmarks.metrics import choice
from pfl_platform.data import Sample
from pfl_platform.evaluation.surfaces import Prediction

NONE = -1
"""Class of an answer that names no option."""


def matthews(predicted: Sequence[int], right: Sequence[int]) -> float:
    """Correlation of two lists of classes, -1 to 1; for more than two classes Gorodkin's generalisation (2004).

    Where one of the lists holds a single class it is 0, as is usual.

    >>> matthews([1, 1, 0, 0], [1, 0, 0, 0])    # tp 1, fp 1, tn 2, fn 0: (2 - 0) / sqrt(2 * 1 * 3 * 2)
    0.5773502691896258
    >>> matthews([1, 1], [1, 0])
    0.0
    """
    if len(set(predicted)) < 2 or len(set(right)) < 2:
        return 0.0
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(right, predicted))


def classes(texts: Sequence[str], samples: Sequence[Sample]) -> list[int]:
    """Index of the option that each text names; `NONE` when it names none or several."""
    found = [
        choice.chosen(text, sample.options, choice.letters_of(sample))
        for text, sample in zip(texts, samples, strict=True)
    ]
    return [NONE if index is None else index for index in found]


def score(prediction: str, sample: Sample) -> float:
    """1 when the prediction names the right option and no other; see `choice`."""
    return choice.score(prediction, sample)


def total(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> float:
    """The correlation over all items. Answers that name no option are a class of their own, so that giving none at all
    scores 0, not -1."""
    texts = [item.text for item in predictions]
    return matthews(classes(texts, samples), classes([sample.gold[0] for sample in samples], samples))
