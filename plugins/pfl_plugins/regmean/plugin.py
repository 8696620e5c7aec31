"""RegMean: linear maps merged by regression on the inputs that each client's data give them.

Citation: Jin, Ren, Preotiuc-Pietro and Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR
2023, arXiv 2212.09849. Published code: bloomberg/dataless-model-merging.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.regmean.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "regmean":
        return None
    config = Config(**options)
    from pfl_plugins.merging.aggregator import MergingAggregator
    from pfl_plugins.regmean.rule import RegMean
    from pfl_plugins.regmean.statistic import Grams

    return MergingAggregator(name, RegMean(config), config, Grams(config))
