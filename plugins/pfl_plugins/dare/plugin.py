"""DARE: drop entries of the deltas at random, rescale the others, then average, add or TIES.

Citation: Yu, Yu, Yu, Huang and Li, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a
Free Lunch", ICML 2024, arXiv 2311.03099. Published code: yule-BUAA/MergeLM.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.dare.config import Config, DareTiesConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name == "dare":
        config = Config(**options)
        from pfl_plugins.arithmetic.rule import Linear
        from pfl_plugins.dare.rule import Dare
        from pfl_plugins.merging.aggregator import MergingAggregator

        total = config.then == "task-arithmetic"
        inner = Linear(total=total, coefficient=0.4 if total else 1.0)
        return MergingAggregator(name, Dare(inner, config.drop_rate), config)
    if name == "dare-ties":
        chosen = DareTiesConfig(**options)
        from pfl_plugins.dare.rule import Dare
        from pfl_plugins.merging.aggregator import MergingAggregator
        from pfl_plugins.ties.rule import Ties

        return MergingAggregator(name, Dare(Ties(chosen), chosen.drop_rate), chosen)
    return None
