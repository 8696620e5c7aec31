"""Public sets for `--public NAME`: LLaVA-Instruct-158K, ChatbotIT, Visual Storytelling (no clients)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.publics.options import SETS, PublicOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """One of the public sets."""
    if name not in SETS:
        return None
    settings = PublicOptions.model_validate(options)

    from pfl_benchmarks.publics.loading import load

    return load(name, settings)


@hookimpl
def pfl_check_data(name: str, options: Mapping[str, Any]) -> Inventory | None:
    """What is there of the files."""
    if name not in SETS:
        return None
    settings = PublicOptions.model_validate(options)

    from pfl_benchmarks.publics.check import check

    return check(name, settings)
