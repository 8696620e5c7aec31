"""Task arithmetic: the sum of the clients' deltas, times lambda.

Citation: Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi and Farhadi, "Editing Models with Task
Arithmetic", ICLR 2023, arXiv 2212.04089.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.arithmetic.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "task-arithmetic":
        return None
    config = Config(**options)
    from pfl_plugins.arithmetic.rule import Linear
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, Linear(total=True), config)
