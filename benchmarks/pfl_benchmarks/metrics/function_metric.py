"""A metric made of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from pfl_platform.data import Sample
from pfl_platform.evaluation.surfaces import Metric


@final
class FunctionMetric(Metric):
    """Scores by `function(prediction, sample, **options)`."""

    def __init__(self, name: str, function: Callable[..., float], options: Mapping[str, Any]) -> None:
        self.name = name
        self._function = function
        self._options = dict(options)

    def score(self, prediction: str, sample: Sample) -> float:
        return self._function(prediction, sample, **self._options)
