"""Options of the benchmark `cifar100`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = "cifar100"


class CifarOptions(BaseModel):
    """Options of the benchmark `cifar100`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(
        None, description="folder that holds cifar-100-binary, or that one itself; default: `cifar100` in $PFL_DATA"
    )
    num_clients: int = Field(10, ge=1, le=10_000, description="clients")
    alpha: float = Field(0.5, gt=0, description="concentration of the Dirichlet law; small: few classes per client")
    classes: Literal["fine", "coarse"] = Field("fine", description="the 100 classes, or the 20 that they belong to")
    train_size: int = Field(0, ge=0, description="most train pictures per client; 0: no limit")
    validation_share: float = Field(0.1, ge=0, lt=1, description="part of a client's train pictures for validation")
    test_size: int = Field(0, ge=0, description="most test pictures per client; 0: no limit")
    public_size: int = Field(200, ge=0, description="train pictures that no client gets, as a public set")
    data_seed: int = Field(0, description="seed of the partition and of all draws")
    backbones: tuple[str, ...] = Field(("tiny-vit",), min_length=1, description="backbones of the clients, in turn")
