"""Guided clients: the global model starts, anchors or teaches each client's own.

Citation: Piorczynski, Lapacz, Li, Liu, Turner and Dubrawski, "From Aggregation to Guidance: Strategies for Personalized
Federated Fine-Tuning of Foundation Models", Auton Lab, Carnegie Mellon University. No code is published.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.guided.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "guided":
        return None
    config = Config(**options)
    from pfl_plugins.guided.objective import Guided

    return Guided(config)
