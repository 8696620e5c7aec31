"""TAKFL: knowledge of unlike prototypes, distilled one by one and added up as task vectors.

Citation: Morafah, Kungurtsev, Chang, Chen, Lin, "Towards Diverse Device Heterogeneous Federated Learning via Task
Arithmetic Knowledge Integration", NeurIPS 2024, arXiv 2409.18461. Published code: hojinchangucsd/TAKFL
(MMorafah/TAKFL holds its README).

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.takfl.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "takfl":
        return None
    config = Config(**options)
    from pfl_plugins.takfl.aggregator import Takfl

    return Takfl(config)
