"""Options of FedSA-LoRA."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """FedSA-LoRA has no options of its own; see the run's `training` and `adapter` sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
