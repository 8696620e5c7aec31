"""Options of the benchmark `sni`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = "sni"


class SniOptions(BaseModel):
    """Options of the benchmark `sni`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(None, description="folder with `tasks/` and `splits/`; default: `sni` in $PFL_DATA")
    split: str | None = Field(None, description="folder below `splits/`; default: `default`, or the only one")
    tasks: tuple[str, ...] = Field((), description="tasks in the clients' order; default: the largest of the split")
    num_clients: int = Field(10, ge=1, description="clients, where `tasks` names none")
    train_size: int = Field(500, ge=1, description="train instances per client")
    validation_size: int = Field(50, ge=0, description="validation instances per client")
    test_size: int = Field(50, ge=1, description="test instances per client")
    data_seed: int = Field(0, description="seed of the draw of instances")
    definition: Literal["full", "first_sentence", "none"] = Field(
        "full", description="how much of a task's definition stands in the prompt"
    )
    backbones: tuple[str, ...] = Field(
        ("tiny-llama-s", "tiny-llama-m"), min_length=1, description="backbones of the clients, in turn"
    )
    public_per_task: int = Field(500, ge=0, description="public instances per test task of the split; 0: no public set")
