"""EMR-Merging: every client gets the unified delta under its own mask and rescaler.

Citation: Huang, Ye, Chen, He, Zhang and Tang, "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024,
arXiv 2405.17461. Published code: harveyhuang18/EMR_Merging.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.emr.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "emr":
        return None
    config = Config(**options)
    from pfl_plugins.emr.rule import Emr
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, Emr(config), config)
