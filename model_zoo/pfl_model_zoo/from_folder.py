"""A card for a folder that has none: what its configuration says. A folder's absolute path is a backbone's name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pfl_model_zoo.cards import ZooCard
from pfl_platform.errors import UserError

FAMILY: Mapping[str, tuple[Literal["llava", "text"], Literal["vision-language", "text"]]] = {
    "llava": ("llava", "vision-language"),
    "llama": ("text", "text"),
    "qwen2": ("text", "text"),
    "qwen3": ("text", "text"),
}
"""Kind of model, as its configuration names it -> family and modality."""


def named(name: str) -> bool:
    """Whether a backbone's name is a path.

    >>> named("/models/mine"), named("./mine"), named("thkim0305/llama3.2_1B_vl")
    (True, True, False)
    """
    return name.startswith(("/", "~", f".{os.sep}", f"..{os.sep}"))


@cache
def card_of(name: str) -> ZooCard:
    """The card of the model in a folder. Raises `UserError` where there is none, or of another kind."""
    from pfl_model_zoo.families.models import size_of

    folder = Path(name).expanduser().resolve()
    config = _config(folder)
    if config.model_type not in FAMILY:
        raise UserError(
            f"The folder {folder} holds a '{config.model_type}'; of models without a card those of the kinds "
            f"{', '.join(FAMILY)} load."
        )
    family, modality = FAMILY[config.model_type]
    layers, width = size_of(config)
    return ZooCard(
        name=str(folder),
        family=family,
        modality=modality,
        layers=layers,
        hidden_size=width,
        num_params=_params(config),
        source=str(folder),
        picture_tokens=int(getattr(config, "image_seq_length", 0) or 0),
        config=config.to_dict(),
        options={"path": folder},
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"The folder {folder} does not exist or has no config.json, so it is no backbone.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"The config.json in {folder} cannot be read: {first}") from None


def _params(config: Any) -> int:
    """How many params the model has, by its shapes."""
    import torch
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    make: Any = LlavaForConditionalGeneration._from_config
    if config.model_type != "llava":
        make = AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return sum(value.numel() for value in make(config).parameters())
