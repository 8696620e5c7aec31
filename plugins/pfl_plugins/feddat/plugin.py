"""FedDAT: a shared adapter and a teacher of two adapters distil into each other.

Citation: Chen, Zhang, Krompass, Gu and Tresp, "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal
Heterogeneous Federated Learning", AAAI 2024, arXiv 2308.12305. Published code: HaokunChen245/FedDAT.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.feddat.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "feddat":
        return None
    config = Config(**options)
    from pfl_plugins.feddat.objective import FedDAT

    return FedDAT(config)
