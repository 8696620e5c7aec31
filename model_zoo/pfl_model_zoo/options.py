"""What a user may say about how a backbone is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfl_platform.errors import UserError, nearest


class LoadOptions(BaseModel):
    """Options of every backbone of the zoo; unknown ones are errors. A card may set defaults for its backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(None, description="folder to load from, instead of the card's own source")
    vision_path: Path | None = Field(
        None, description="folder of the vision tower, for weights in the original LLaVA layout without one"
    )
    download: bool = Field(False, description="allow fetching from the hub what is not in its local cache")
    allow_pickle: bool = Field(False, description="accept pytorch_model.bin where there are no safetensors")
    init: int | None = Field(None, ge=0, description="random weights from this seed; no weight file is read")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of all weights, whatever the file has"
    )
    load: Literal["4bit", "8bit"] | None = Field(
        None, description="fewer bits for the blocks' linear maps, where bitsandbytes is installed; computes in dtype"
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:N, auto (cuda when there is one), or meta (shapes only)")
    attention: Literal["eager", "sdpa"] = "sdpa"
    max_length: int | None = Field(
        None, ge=8, description="longest row in tokens; default: what the model was made for"
    )
    classes: int | None = Field(None, ge=1, description="classes of an encoder's task head; default: the card's")
    cache_rows: int = Field(8192, ge=0, description="about how many tokenised samples are kept on disk")
    cache_mb: int = Field(64, ge=0, description="disk for resized pictures, in MiB")


def read_options(name: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> LoadOptions:
    """The card's defaults overridden by the user's options, checked.

    >>> read_options("tiny", {"max_length": 64}, {"init": 0}).max_length
    64
    """
    try:
        return LoadOptions.model_validate({**defaults, **options})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            hint = nearest(key, LoadOptions.model_fields)
            raise UserError(f"Backbone '{name}' has no option '{key}'.{hint}") from None
        raise UserError(f"Backbone '{name}': option '{key}' cannot be {first['input']!r}: {first['msg']}.") from None
