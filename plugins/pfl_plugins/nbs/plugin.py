"""Nash bargaining as an aggregator: clients agree on a direction from which each gains the same share.

Citation: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, "Multi-Task Learning as a Bargaining Game",
ICML 2022, arXiv 2202.01017. Published code: AvivNavon/nash-mtl. FedMosaic's comparison uses it as a server rule and has
not published that.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.nbs.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "nbs":
        return None
    config = Config(**options)
    from pfl_plugins.nbs.aggregator import NashBargaining

    return NashBargaining(config)
