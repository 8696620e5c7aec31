"""Options of FedDAT."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """The teacher and the distillation between it and the shared adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(3.0, gt=0, description="T of both divergences (FedMosaic's comparison: 2)")
    local_share: float = Field(
        0.5, ge=0, le=1, description="weight of the local adapter in the teacher; the rest is that of the frozen copy"
    )
    official_kl: bool = Field(
        False, description="the teacher's distribution first in each divergence, as in the published code"
    )
