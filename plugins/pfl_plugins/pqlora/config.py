"""Options of PQ-LoRA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pfl_plugins.lora.config import Config as LoraOptions


class Config(LoraOptions):
    """Options of PQ-LoRA; rank, scale, dropout and targets hold for its conventional layers too."""

    blocks: int = Field(4, ge=1, description="N_B, number of layers that carry P and Q")
    placement: Literal["eq6", "alg2"] = Field(
        "eq6", description="which layers: the paper's Eq. 6 (also its code), or its Alg. 2 (remainder first)"
    )
