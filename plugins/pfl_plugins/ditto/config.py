"""Options of Ditto."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """How near a client's own adapter stays to the global one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lam: float = Field(
        1.0, ge=0, description="lambda: the gradient lambda (v - w^t) is added (FedMosaic's comparison: 0.002)"
    )
    lams: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="client id -> its own lambda, chosen on its validation data, instead of `lam`"
    )
    official_leak: bool = Field(
        False, description="personal adapters are averaged and overwritten as well, as in FedMosaic's published code"
    )
