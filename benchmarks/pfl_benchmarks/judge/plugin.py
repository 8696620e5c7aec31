"""Ratings of 1 to 10 by a judge: a server, recorded verdicts, or an offline stub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.judge.options import RatingOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.evaluation.surfaces import Metric


@hookimpl
def pfl_make_metric(name: str, options: Mapping[str, Any]) -> Metric | None:
    """The metric `rating`."""
    if name != "rating":
        return None
    settings = RatingOptions.model_validate(options)

    from pfl_benchmarks.judge.rating import Rating

    return Rating(settings)
