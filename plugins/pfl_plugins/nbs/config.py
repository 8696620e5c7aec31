"""Options of Nash bargaining."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Options of the aggregator `nbs`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ridge: float = Field(
        1e-6,
        gt=0,
        description="added to the Gram matrix's diagonal, relative to its mean; keeps opposed clients finite",
    )
    reply_slot: str = Field(
        "", description="slot under which the result is sent, for objectives that take in another than they send"
    )
