"""CIFAR-100 over clients by a Dirichlet law: small pictures of 100 kinds, other kinds for each client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.cifar100.options import NAME, CifarOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The benchmark `cifar100`."""
    if name != NAME:
        return None
    settings = CifarOptions.model_validate(options)

    from pfl_benchmarks.cifar100.loading import load

    return load(settings)


@hookimpl
def pfl_check_data(name: str, options: Mapping[str, Any]) -> Inventory | None:
    """What is there of the files."""
    if name != NAME:
        return None
    settings = CifarOptions.model_validate(options)

    from pfl_benchmarks.cifar100.check import check

    return check(settings)


@hookimpl
def pfl_outline_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The clients and the published numbers of samples, without the files."""
    if name != NAME:
        return None
    settings = CifarOptions.model_validate(options)

    from pfl_benchmarks.cifar100.outline import outline

    return outline(settings)
