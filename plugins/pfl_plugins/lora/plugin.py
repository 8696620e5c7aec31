"""LoRA in every linear map of every decoder block: delta = scale * B A.

Citation: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, 2106.09685. Injection and
saving by peft. A is Kaiming-uniform, B is zero, as in the paper's published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.lora.config import Config

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType


@hookimpl
def pfl_make_adapter(name: str, options: Mapping[str, Any]) -> AdapterType | None:
    if name != "lora":
        return None
    config = Config(**options)
    from pfl_plugins.lora.adapter import Lora

    return Lora(config)
