"""OSRM: before training, each client's A is put where the other clients' features are not, so that merging hurts less.

Citation: Zhang and Zhou, "Unraveling LoRA Interference: Orthogonal Subspaces for Robust Model Merging", 2505.22934.
Published code: illidanlab/OSRM.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.osrm.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "osrm":
        return None
    config = Config(**options)
    from pfl_plugins.osrm.objective import Osrm

    return Osrm(config)
