"""FedSim: a shared and a personal adapter, trained together.

Citation: Pillutla, Malik, Mohamed, Rabbat, Sanjabi and Xiao, "Federated Learning with Partial Model Personalization",
ICML 2022, arXiv 2204.03809. Published code: facebookresearch/FL_partial_personalization.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedsim.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective, Personalizer


class NoOptions(BaseModel):
    """The personalizer evaluates what the objective's options say."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedsim":
        return None
    config = Config(**options)
    from pfl_plugins.fedsim.objective import FedSim

    return FedSim(config)


@hookimpl
def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
    if name != "fedsim":
        return None
    NoOptions(**options)
    from pfl_plugins.fedsim.objective import AsTrained

    return AsTrained()
