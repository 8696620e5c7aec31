"""Published federations: DRAKE, HFLB, Fed-Aya, Fed-Scope and Fed-LLM-Large, from their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.suites.options import OPTIONS
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """One of the published federations."""
    if name not in OPTIONS:
        return None
    settings = OPTIONS[name].model_validate(options)
    if settings.stand_in is not None:
        from pfl_benchmarks.suites.standing_in import standing_in

        return standing_in(name, settings)

    from pfl_benchmarks.suites.loading import load

    return load(name, settings)


@hookimpl
def pfl_check_data(name: str, options: Mapping[str, Any]) -> Inventory | None:
    """What is there of the files."""
    if name not in OPTIONS:
        return None
    settings = OPTIONS[name].model_validate(options)

    from pfl_benchmarks.suites.check import check

    return check(name, settings)


@hookimpl
def pfl_outline_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The clients and the published numbers of samples, without the files."""
    if name not in OPTIONS:
        return None
    settings = OPTIONS[name].model_validate(options)

    from pfl_benchmarks.suites.outline import outline

    return outline(name, settings)
