"""Ditto: every client trains the global adapter and, beside it, one of its own that stays near the global one.

Citation: Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv 2012.04221. Published code: litian96/ditto.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.ditto.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "ditto":
        return None
    config = Config(**options)
    from pfl_plugins.ditto.objective import Ditto

    return Ditto(config)
