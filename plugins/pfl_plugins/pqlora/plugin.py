"""PQ-LoRA in the last layer of each of N_B blocks, LoRA in all other layers.

Citation: Seo et al., "Not All Clients Are Equal: Collaborative Model Personalization on Heterogeneous Multi-Modal
Clients" (FedMosaic), ICLR 2026. Published code: snumprlab/fedmosaic at 7887f5f.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.pqlora.config import Config

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType


@hookimpl
def pfl_make_adapter(name: str, options: Mapping[str, Any]) -> AdapterType | None:
    if name != "pqlora":
        return None
    config = Config(**options)
    from pfl_plugins.pqlora.adapter import PQLora

    return PQLora(config)
