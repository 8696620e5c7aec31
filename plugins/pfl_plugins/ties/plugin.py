"""TIES-Merging: trim, elect signs, merge what agrees.

Citation: Yadav, Tam, Choshen, Raffel and Bansal, "TIES-Merging: Resolving Interference When Merging Models", NeurIPS
2023, arXiv 2306.01708. Published code: prateeky2806/ties-merging.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.ties.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "ties":
        return None
    config = Config(**options)
    from pfl_plugins.merging.aggregator import MergingAggregator
    from pfl_plugins.ties.rule import Ties

    return MergingAggregator(name, Ties(config), config)
