"""Options of FFA-LoRA."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """FFA-LoRA has no options of its own; see the run's `training` and `adapter` sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
