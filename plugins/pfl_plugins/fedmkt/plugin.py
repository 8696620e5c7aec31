"""FedMKT: mutual knowledge transfer between clients and server, by predictions of a public set.

Citation: Fan, Ma, Kang, Fan, Chen, Yang et al., "FedMKT: Federated Mutual Knowledge Transfer for Large and Small
Language Models", COLING 2025, arXiv 2406.02224. Published code: FederatedAI/FATE-LLM.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedmkt.config import Config, ServerConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedmkt":
        return None
    config = Config(**options)
    from pfl_plugins.fedmkt.objective import FedMKT

    return FedMKT(config)


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "fedmkt":
        return None
    ServerConfig(**options)
    from pfl_plugins.fedmkt.aggregator import FedMKTServer

    return FedMKTServer()
