"""KnOTS: deltas are merged by their coordinates in a basis that they share.

Citation: Stoica, Ramesh, Ecsedi, Choshen and Hoffman, "Model Merging with SVD to Tie the Knots", ICLR 2025, arXiv
2410.19735. Published code: gstoica27/KnOTS.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.knots.config import Config, KnotsIsoConfig, KnotsTiesConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator
    from pfl_plugins.merging.config import MergeConfig
    from pfl_plugins.merging.rules import Rule


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    rule: Rule
    config: MergeConfig
    if name == "knots":
        config = Config(**options)
        from pfl_plugins.arithmetic.rule import Linear

        rule = Linear(total=False)
    elif name == "knots-ties":
        chosen = config = KnotsTiesConfig(**options)
        from pfl_plugins.ties.rule import Ties

        rule = Ties(chosen)
    elif name == "knots-iso-c":
        iso = config = KnotsIsoConfig(**options)
        from pfl_plugins.isoc.rule import IsoC

        rule = IsoC(iso, iso.tol)
    else:
        return None
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, rule, config)
