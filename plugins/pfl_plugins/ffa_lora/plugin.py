"""FFA-LoRA: A is drawn once and frozen at all clients; only B is trained, sent and averaged.

Citation: Sun, Li, Li and Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.ffa_lora.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "ffa-lora":
        return None
    Config(**options)
    from pfl_plugins.ffa_lora.objective import FfaLora

    return FfaLora()
