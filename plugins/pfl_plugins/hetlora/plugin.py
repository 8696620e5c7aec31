"""HETLoRA: clients train adapters of different ranks, cut ranks that they do not need, and are averaged by norm.

Citation: Cho, Liu, Xu, Fahrezi and Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation
Models", EMNLP 2024, arXiv 2401.06432. No official code.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.hetlora.config import AggregateConfig, Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "hetlora":
        return None
    config = Config(**options)
    from pfl_plugins.hetlora.objective import HetLora

    return HetLora(config)


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "hetlora":
        return None
    config = AggregateConfig(**options)
    from pfl_plugins.hetlora.aggregator import ByNorm

    return ByNorm(config)
