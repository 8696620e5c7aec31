"""Fed-ET: clients of unlike backbones teach a larger server model their weighted consensus.

Citation: Cho, Manoel, Joshi, Sim, Dimitriadis, "Heterogeneous Ensemble Knowledge Transfer for Training Large Models in
Federated Learning", IJCAI 2022, arXiv 2204.12703. No official code was found.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedet.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "fedet":
        return None
    config = Config(**options)
    from pfl_plugins.fedet.aggregator import FedET

    return FedET(config)
