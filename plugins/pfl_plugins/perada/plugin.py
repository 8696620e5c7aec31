"""PerAda: personal adapters, drawn to a global adapter that the server distils from all clients' predictions.

Citation: Xie, Huang, Chen, Li, Nie, Anandkumar, Xiao, "PerAda: Parameter-Efficient Federated Learning Personalization
with Generalization Guarantees", CVPR 2024, arXiv 2302.06637. Published code: NVlabs/PerAda.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.ditto.config import Config as DittoConfig
from pfl_plugins.perada.config import Config, ServerConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


def client(config: Config) -> DittoConfig:
    """Ditto's client is PerAda's: `lambda ||v - w||^2` has the gradient of Ditto's penalty at twice the lambda."""
    return DittoConfig(lam=2.0 * config.lam, official_leak=config.official_leak)


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "perada":
        return None
    config = Config(**options)
    from pfl_plugins.ditto.objective import Ditto

    return Ditto(client(config))


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "perada":
        return None
    config = ServerConfig(**options)
    from pfl_plugins.perada.aggregator import PerAda

    return PerAda(config)
