"""Options of FedDPA."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Config(Options):
    """How the local adapter is trained beside the global one."""

    variant: Literal["T", "F"] = Field(
        "T", description="T: both adapters in every round; F: the local one by fine-tuning the final global one"
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the local adapter while it trains (T), and in evaluation without weights",
    )
    local_share: float = Field(0.5, gt=0, lt=1, description="T: the part of the local steps that trains the local one")
    tune_rounds: int = Field(1, ge=1, description="F: the last rounds, in which nothing is exchanged any more")
    order: Literal["local_first", "official_global_first"] = Field(
        "local_first",
        description="T: local before global, from round 1 on at the received global; or FedMosaic's code, where the "
        "local one is trained last, always at the global one that was just trained",
    )
    official_leak: bool = Field(
        False, description="local adapters are averaged and overwritten as well, as in FedMosaic's published code"
    )


class WeightConfig(Options):
    """Options of the personalizer `feddpa`: the weight of the local adapter in evaluation."""

    weights: Literal["dynamic", "static"] = Field(
        "dynamic", description="by a question's similarity to the client's own samples, or objective.alpha for all"
    )
    w_max: float = Field(0.5, ge=0, le=1, description="dynamic: the weight of a question that is alike in every way")
    instances: int = Field(5, ge=1, description="dynamic: training samples that a question is compared with")
    official_sign: bool = Field(
        False,
        description="the similarity weighs the global adapter and the rest the local one, as in the published code",
    )
