"""FedAlt of partial model personalization: the personal part is trained first, then the shared one.

Citation: Pillutla, Malik, Mohamed, Rabbat, Sanjabi and Xiao, "Federated Learning with Partial Model Personalization",
ICML 2022, arXiv 2204.03809. Published code: facebookresearch/FL_partial_personalization.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.partial_fedalt.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "partial-fedalt":
        return None
    config = Config(**options)
    from pfl_plugins.partial_fedalt.objective import PartialFedAlt

    return PartialFedAlt(config)
