"""FlexLoRA: the exact mean of the clients' deltas, truncated to each client's own rank.

Citation: Bai, Chen, Qian, Yao and Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources", NeurIPS 2024, arXiv 2402.11505. Published code: alibaba/FederatedScope, branch FlexLoRA.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.flexlora.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "flexlora":
        return None
    config = Config(**options)
    from pfl_plugins.arithmetic.rule import Linear
    from pfl_plugins.merging.aggregator import MergingAggregator

    return MergingAggregator(name, Linear(total=False), config)
