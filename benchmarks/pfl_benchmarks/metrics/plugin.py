"""Scores of predictions: choice, exact, token_f1, rouge_l, rouge_1, gsm8k, matthews and pearson-spearman.

Importing this module imports none of torch, rouge-score, scikit-learn and scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.evaluation.surfaces import Metric


class NoOptions(BaseModel):
    """`choice`, `exact`, `gsm8k` and `matthews` have no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenF1Options(NoOptions):
    """Options of `token_f1`: with `multiset` a repeated word counts as often as it stands."""

    multiset: bool = False


class RougeLOptions(NoOptions):
    """Options of `rouge_l`; `any_language` keeps words outside a-z and 0-9, without stems."""

    use_stemmer: bool = True
    any_language: bool = False


class Rouge1Options(NoOptions):
    """Options of `rouge_1`; `any_language` keeps words outside a-z and 0-9, without stems."""

    use_stemmer: bool = False
    any_language: bool = False


class PearsonSpearmanOptions(NoOptions):
    """Options of `pearson-spearman`; an item's own score falls to 0 at a difference of `scale`."""

    scale: float = Field(5.0, gt=0)


OPTIONS: Mapping[str, type[NoOptions]] = {
    "choice": NoOptions,
    "exact": NoOptions,
    "token_f1": TokenF1Options,
    "rouge_l": RougeLOptions,
    "rouge_1": Rouge1Options,
    "gsm8k": NoOptions,
    "matthews": NoOptions,
    "pearson-spearman": PearsonSpearmanOptions,
}


@hookimpl
def pfl_make_metric(name: str, options: Mapping[str, Any]) -> Metric | None:
    """One of `OPTIONS`. A module with a function `total` scores all items together, the others by their mean."""
    if name not in OPTIONS:
        return None
    settings = OPTIONS[name].model_validate(options).model_dump()

    from pfl_benchmarks.metrics.function_metric import FunctionMetric

    module = import_module(f"pfl_benchmarks.metrics.{name.replace('-', '_')}")
    return FunctionMetric(name, module.score, settings, getattr(module, "total", None))
