"""The public sets, and the options that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pfl_benchmarks.folder.pictures import MOST_PIXELS, Check


@dataclass(frozen=True)
class PublicSet:
    """A public set: what it is called, its folders in $PFL_DATA, its files (the first that is there is read), where
    pictures may lie below its folder, and how many samples the published one has."""

    title: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    pictures: tuple[str, ...]
    official: int | None


SETS: Mapping[str, PublicSet] = {
    "llava-instruct": PublicSet(
        "LLaVA-Instruct-158K",
        ("llava-instruct", "llava_format"),
        (
            "llava_instruct_158k.json",
            "llava_instruct_150k.json",
            "llava_instruct_90.json",
            "coco2014_val_gpt4_qa_30x3.jsonl",
        ),
        ("images", "train2017", "coco/train2017", "train2014", "val2014", ""),
        157_712,
    ),
    "chatbotit": PublicSet(
        "Chatbot Instruction Tuning", ("chatbotit",), ("chatbotit.json", "chatbotit.jsonl"), ("",), None
    ),
    "visual-storytelling": PublicSet(
        "Visual Storytelling",
        ("visual-storytelling",),
        ("visual_storytelling.json", "visual_storytelling.jsonl"),
        ("images", ""),
        None,
    ),
}


class PublicOptions(BaseModel):
    """Options of the public sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path | None = Field(None, description="folder with the file; default: the set's folder in $PFL_DATA")
    file: str | None = Field(None, description="the file's name in it; default: the published names")
    pictures: Path | None = Field(None, description="folder that picture names are relative to; default: looked for")
    most: int | None = Field(None, ge=1, description="records that are read, drawn by `data_seed`; default: all")
    data_seed: int = Field(0, description="seed of that draw")
    max_pixels: int = Field(MOST_PIXELS, ge=1, description="a picture with more pixels is refused")
    check: Check = Field(
        "auto", description="auto: decode the first 5,000 pictures, read beginning and end of the rest; full; header"
    )
