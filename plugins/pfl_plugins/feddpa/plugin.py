"""FedDPA: a global and a local adapter, and a weight between them for each question.

Citation: Yang, Long, Shen, Jiang and Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models",
NeurIPS 2024, arXiv 2403.19211. Published code: Lydia-yang/FedDPA.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.feddpa.config import Config, WeightConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective, Personalizer


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "feddpa":
        return None
    config = Config(**options)
    from pfl_plugins.feddpa.objective import FedDPA

    return FedDPA(config)


@hookimpl
def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
    if name != "feddpa":
        return None
    config = WeightConfig(**options)
    from pfl_plugins.feddpa.personalizer import InstanceWeights

    return InstanceWeights(config)
