"""Options of the benchmark `glue`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

NAME = "glue"


class GlueOptions(BaseModel):
    """Options of the benchmark `glue`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(None, description="folder with one folder per task; default: `glue` in $PFL_DATA")
    tasks: tuple[str, ...] = Field((), description="tasks in the clients' order, one per client; default: all eight")
    train_size: int = Field(0, ge=0, description="train rows per client; 0: all that validation leaves")
    validation_size: int = Field(200, ge=0, description="validation rows per client, drawn from train.tsv")
    test_size: int = Field(0, ge=0, description="test rows per client, drawn from the dev file; 0: all")
    data_seed: int = Field(0, description="seed of the draws")
    skip_broken: bool = Field(False, description="leave out rows with too few or too many fields instead of stopping")
    backbones: tuple[str, ...] = Field(("tiny-roberta",), min_length=1, description="backbones of the clients, in turn")
