"""Options that text benchmarks have in common."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class TextOptions(BaseModel):
    """Where the files are, how much of them is used, and who learns from it. A size of 0 means all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(None, description="folder with the files; default: the benchmark's folder in $PFL_DATA")
    train_size: int = Field(0, ge=0, description="train samples per client, at most; 0: all")
    validation_size: int = Field(0, ge=0, description="validation samples per client, cut out of the train file")
    test_size: int = Field(0, ge=0, description="test samples per client, at most; 0: all")
    data_seed: int = Field(0, description="seed of the draws; the run's seed is another")
    backbones: tuple[str, ...] = Field(
        ("tiny-llama-s", "tiny-llama-m"), min_length=1, description="backbones of the clients, in turn"
    )
