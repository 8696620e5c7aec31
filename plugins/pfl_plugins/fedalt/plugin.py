"""FedALT: every client mixes an adapter of its own with one that is the mean of the others', token by token.

Citation: Bian, Wang, Zhang and Xu, "FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World
LoRA", AAAI 2026, arXiv 2503.11880. Published code: jmbian/FedALT.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedalt.config import Config, RestConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedalt":
        return None
    config = Config(**options)
    from pfl_plugins.fedalt.objective import FedALT

    return FedALT(config)


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "fedalt":
        return None
    config = RestConfig(**options)
    from pfl_plugins.fedalt.rest import RestOfWorld

    return RestOfWorld(config)
