"""The params of a backbone's task head, such as a classifier: what every client begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.backbones import Backbone
from pfl_platform.rng import torch_rng

HEAD = "head"
"""Slot name of a task head's params; their keys are `head/<module path>/<name>`."""
HEADS = Keys(f"{HEAD}/*")
DEVIATION = 0.02
"""Standard deviation of the weights of a head that is drawn; its biases are 0."""


def key_of(path: str, name: str) -> str:
    return f"{HEAD}/{path}/{name}"


def first_head(backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """The head as it is loaded, float32 on the CPU. What no weights were read for is drawn at (seed, "head", key), so
    that runs of different seeds begin with different heads. {} for a backbone without a head."""
    first = {}
    for path in backbone.task_head:
        for name, loaded in backbone.loaded_head[path].items():
            key = key_of(path, name)
            if path not in backbone.fresh_head:
                first[key] = loaded
            elif loaded.dim() < 2:
                first[key] = torch.zeros_like(loaded)
            else:
                first[key] = DEVIATION * torch.randn(loaded.shape, generator=torch_rng(seed, "head", key))
    return first
