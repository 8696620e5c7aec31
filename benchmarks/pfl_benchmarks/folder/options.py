"""What a user can set for a federation in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pfl_benchmarks.folder.pictures import MOST_PIXELS, Check


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class ReadingOptions(BaseModel):
    """How a federation in the folder form is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(None, description="the folder that holds `dataset/`, where it is not `path`")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of each task's train records held out")
    data_seed: int = Field(0, description="seed of the validation cut and the caps; the run's seed is another")
    max_train: int | None = Field(None, ge=1, description="train records per task, validation included; default: all")
    max_test: int | None = Field(None, ge=1, description="test records per task; default: all")
    backbone_map: dict[str, str] = Field(default_factory=dict, description="model_id of the scenario -> backbone")
    default_backbone: str | None = Field(None, description="backbone of clients without a model_id")
    public: Path | None = Field(None, description="public record file or folder; default: `public/` in the folder")
    public_size: int | None = Field(None, ge=1, description="records read per public set; default: all")
    public_root: Path | None = Field(None, description="what the public set's picture paths are relative to")
    max_pixels: int = Field(MOST_PIXELS, ge=1, description="a picture with more pixels is refused")
    check: Check = Field(
        "auto", description="auto: decode the first 5,000 pictures, read beginning and end of the rest; full; header"
    )


class FolderOptions(ReadingOptions):
    """Options of the benchmark `folder`."""

    path: Path | None = Field(None, description="the folder that holds `dataset/` and the scenario")
    scenario: str | None = Field(None, description="scenario file, by name or path; default: the only one")
    unseen: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="scenario files of tasks that no client trains on"
    )
