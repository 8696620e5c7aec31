"""Scores of one prediction: choice, exact, token_f1 and rouge_l.

Importing this module imports neither torch nor rouge-score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.evaluation.surfaces import Metric


class NoOptions(BaseModel):
    """`choice` and `exact` have no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenF1Options(NoOptions):
    """Options of `token_f1`: with `multiset` a repeated word counts as often as it stands."""

    multiset: bool = False


class RougeLOptions(NoOptions):
    """Options of `rouge_l`; `any_language` keeps words outside a-z and 0-9, without stems."""

    use_stemmer: bool = True
    any_language: bool = False


OPTIONS: Mapping[str, type[NoOptions]] = {
    "choice": NoOptions,
    "exact": NoOptions,
    "token_f1": TokenF1Options,
    "rouge_l": RougeLOptions,
}


@hookimpl
def pfl_make_metric(name: str, options: Mapping[str, Any]) -> Metric | None:
    """`choice`, `exact`, `token_f1` or `rouge_l`."""
    if name not in OPTIONS:
        return None
    settings = OPTIONS[name].model_validate(options).model_dump()

    from pfl_benchmarks.metrics.function_metric import FunctionMetric

    score: Callable[..., float] = import_module(f"pfl_benchmarks.metrics.{name}").score
    return FunctionMetric(name, score, settings)
