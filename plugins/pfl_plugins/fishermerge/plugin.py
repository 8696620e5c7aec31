"""Fisher merging per client: FedIT and Local, averaged entry by entry by their Fisher information.

Citation: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832. Published
code: mmatena/model_merging. As a personalised method it is a baseline of Potara, arXiv 2602.18658.

Departures and choices: see the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fishermerge.config import Config

if TYPE_CHECKING:
    from pfl_platform.federation.components import Personalizer


@hookimpl
def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
    if name != "fishermerge":
        return None
    config = Config(**options)
    from pfl_plugins.fishermerge.personalizer import FisherMerge

    return FisherMerge(config)
