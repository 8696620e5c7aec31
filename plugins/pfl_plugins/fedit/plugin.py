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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


class Config(BaseModel):
    """FedIT's objective has no options of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AverageConfig(BaseModel):
    """Options of the aggregator `fedavg`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="a client's weight: its number of training examples, or 1"
    )


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
