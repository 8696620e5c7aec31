"""SFT (also called Local): each client fine-tunes an adapter on its own data and sends nothing.

The reference of every personalised federated method: what a client reaches alone, with the same number of local
steps. The client goes on from its own state in every round; optimiser moments are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


class Config(BaseModel):
    """SFT has no options of its own; see the run's `training` and `adapter` sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "sft":
        return None
    Config(**options)
    from pfl_plugins.sft.objective import Sft

    return Sft()


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "none":
        return None
    Config(**options)
    from pfl_plugins.sft.objective import NoExchange

    return NoExchange()
