"""Iso-C: the summed deltas with all their singular values made equal.

Citation: Marczak, Magistri, Cygert, Twardowski, Bagdanov and van de Weijer, "No Task Left Behind: Isotropic Model
Merging with Common and Task-Specific Subspaces", ICML 2025, arXiv 2502.04959. Published code: danielm1405/iso-merging.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.isoc.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "iso-c":
        return None
    config = Config(**options)
    from pfl_plugins.isoc.rule import IsoC
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, IsoC(config, config.tol), config)
