"""Exact match of the words."""

from __future__ import annotations

from pfl_benchmarks.metrics.text import bare
from pfl_platform.data import Sample


def score(prediction: str, sample: Sample) -> float:
    """1 when the prediction has the words of an accepted answer; case, white space and outer punctuation are ignored.

    >>> from pfl_platform.data import Turn
    >>> sample = Sample("0", (Turn("Capital of Peru?", "Lima"),))
    >>> score(" lima.", sample), score("Lima, Peru", sample)
    (1.0, 0.0)
    """
    return float(any(bare(prediction) == bare(gold) for gold in sample.gold))
