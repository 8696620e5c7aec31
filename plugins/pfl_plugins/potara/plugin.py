"""Potara: per client one model made of a federated and a local one, by weights in closed form.

Citation: Zou et al., "Communication-Efficient Personalized Adaptation via Federated-Local Model Merging", arXiv
2602.18658. No code is published.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.potara.config import Config, MergeConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective, Personalizer


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "potara":
        return None
    config = Config(**options)
    from pfl_plugins.potara.objective import Potara

    return Potara(config)


@hookimpl
def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
    if name != "potara":
        return None
    config = MergeConfig(**options)
    from pfl_plugins.potara.personalizer import Merge

    return Merge(config)
