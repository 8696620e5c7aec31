"""PQ-LoRA in the last layer of each of N_B blocks, LoRA in all other layers.

Citation: Seo et al., "Not All Clients Are Equal: Collaborative Model Personalization on Heterogeneous Multi-Modal
Clients" (FedMosaic), ICLR 2026. Published code: snumprlab/fedmosaic at 7887f5f.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.lora.plugin import Config as LoraOptions

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType


class Config(LoraOptions):
    """Options of PQ-LoRA; rank, scale, dropout and targets hold for its conventional layers too."""

    blocks: int = Field(4, ge=1, description="N_B, number of layers that carry P and Q")
    placement: Literal["eq6", "alg2"] = Field(
        "eq6", description="which layers: the paper's Eq. 6 (also its code), or its Alg. 2 (remainder first)"
    )


@hookimpl
def pfl_make_adapter(name: str, options: Mapping[str, Any]) -> AdapterType | None:
    if name != "pqlora":
        return None
    config = Config(**options)
    from pfl_plugins.pqlora.adapter import PQLora

    return PQLora(config)
