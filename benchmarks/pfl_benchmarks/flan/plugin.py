"""FLAN by tasks, one per client, scored by ROUGE-1 (text only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.flan.options import SETS, FlanOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """One of the three sets."""
    if name not in SETS:
        return None
    settings = FlanOptions.model_validate(options)

    from pfl_benchmarks.flan.loading import load

    return load(name, settings)


@hookimpl
def pfl_check_data(name: str, options: Mapping[str, Any]) -> Inventory | None:
    """What is there of the files."""
    if name not in SETS:
        return None
    settings = FlanOptions.model_validate(options)

    from pfl_benchmarks.flan.check import check

    return check(name, settings)


@hookimpl
def pfl_outline_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The clients and the published numbers of samples, without the files."""
    if name not in SETS:
        return None
    settings = FlanOptions.model_validate(options)

    from pfl_benchmarks.flan.outline import outline

    return outline(name, settings)
