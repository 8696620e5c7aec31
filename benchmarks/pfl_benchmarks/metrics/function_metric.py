"""A metric made of functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from pfl_platform.data import Sample
from pfl_platform.evaluation.surfaces import Metric, Prediction

Total = Callable[[Sequence[Prediction], Sequence[Sample]], float]


@final
class FunctionMetric(Metric):
    """Scores an item by `function(prediction, sample, **options)`, and all items of a cell by `total`, by default their
    mean."""

    def __init__(
        self, name: str, function: Callable[..., float], options: Mapping[str, Any], total: Total | None = None
    ) -> None:
        self.name = name
        self._function = function
        self._options = dict(options)
        self._total = total

    def score(self, prediction: str, sample: Sample) -> float:
        return self._function(prediction, sample, **self._options)

    def total(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> float:
        return super().total(predictions, samples) if self._total is None else self._total(predictions, samples)
