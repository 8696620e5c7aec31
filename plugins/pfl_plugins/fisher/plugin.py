"""Fisher merging: params averaged entry by entry, weighted by their Fisher information at each client.

Citation: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832. Published
code: mmatena/model_merging.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fisher.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "fisher":
        return None
    config = Config(**options)
    from pfl_plugins.fisher.rule import Fisher
    from pfl_plugins.fisher.statistic import FisherInformation
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, Fisher(config), config, FisherInformation(config))
