"""What a user can set for a file of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_benchmarks.folder.pictures import MOST_PIXELS, Check


class InstructionOptions(BaseModel):
    """Options of the benchmark `instructions`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    file: Path | None = Field(None, description="records, as a JSON list or as JSON lines (.jsonl)")
    pictures: Path | None = Field(None, description="folder that picture names are relative to; default: the file's")
    held_out: int = Field(0, ge=0, description="records that are asked and not learned, with none of their pictures")
    metric: str = Field("token_f1", description="scores the answers to these, of their first questions")
    need: Literal["nothing", "pictures"] = Field("nothing", description="pictures: refuse a record without any")
    backbone: str = Field("tiny-llava-llama-s", description="what the client has when nothing else is said")
    most: int | None = Field(None, ge=1, description="records that are read, drawn by `data_seed`; default: all")
    data_seed: int = Field(0, description="seed of that draw, and of what is held out")
    max_pixels: int = Field(MOST_PIXELS, ge=1, description="a picture with more pixels is refused")
    check: Check = Field(
        "auto", description="auto: decode the first 5,000 pictures, read beginning and end of the rest; full; header"
    )
