"""FedIT: clients fine-tune the global adapter; the server averages A and B separately.

Citation: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, 2305.05644.
Published code: JayZhang42/FederatedGPT-Shepherd.

Departures and choices:
- Weights are the local dataset sizes, as published; `weighting: uniform` is what FedMosaic's comparison uses.
- `mean(B) mean(A)` is not `mean(B A)`; this error belongs to the method and is kept.
- On mixed backbones the average is taken among the clients of each backbone ("homogeneous groups"), except for
params that mean the same in every backbone.
- The evaluated model is the client's after its local training, as in FedMosaic's comparison.
- Adam's moments are reset in every round, because the params they belong to were replaced by the download.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedit.config import AverageConfig, Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedit":
        return None
    Config(**options)
    from pfl_plugins.fedit.components import FedIT

    return FedIT()


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "fedavg":
        return None
    config = AverageConfig(**options)
    from pfl_plugins.fedit.components import FedAvg

    return FedAvg(config)
