"""Options of FedAlt (2204.03809)."""

from __future__ import annotations

from pydantic import Field

from pfl_plugins.fedsim.config import Config as TwoPartsConfig


class Config(TwoPartsConfig):
    """How a round's steps are divided between the parts."""

    personal_share: float = Field(
        0.5, gt=0, lt=1, description="tau_v / (tau_v + tau_u): the part of the local steps that trains v"
    )
