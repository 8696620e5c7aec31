"""Options of the adapter of whole modules."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pfl_plugins.lora.config import Config as LoraConfig


class Config(BaseModel):
    """Options of the adapter of whole modules."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    modules: tuple[str, ...] = Field(
        (), description="paths in the backbone, or shell patterns of them; all params in there train"
    )
    lora: LoraConfig | None = Field(
        None, description="options of LoRA on the blocks' linear maps that are not among these; default: none"
    )
