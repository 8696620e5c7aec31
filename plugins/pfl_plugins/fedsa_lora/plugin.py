"""FedSA-LoRA: A and B are trained, only A is shared.

Citation: Guo, Zeng, Wang, Fan, Wang and Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
ICLR 2025, arXiv 2410.01463. Published code: Pengxin-Guo/FedSA-LoRA.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedsa_lora.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedsa-lora":
        return None
    Config(**options)
    from pfl_plugins.fedsa_lora.objective import FedSaLora

    return FedSaLora()
