"""The params of a backbone's task head, such as a classifier: what every client begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Slot
from pfl_platform.backbones import Backbone
from pfl_platform.rng import torch_rng

HEAD = "head"
"""Slot name of a task head's params; their keys are `head/<module path>/<name>`."""
HEADS = Keys(f"{HEAD}/*")
DEVIATION = 0.02
"""Standard deviation of the weights of a head that is drawn; its biases are 0."""


OWN_HEADS = Keys(f"{HEAD}@*/*")
"""Heads of slots that have one of their own; keys are `head@<slot>/<module path>/<name>`."""


def key_of(path: str, name: str, slot: str = "") -> str:
    return f"{HEAD}{'@' if slot else ''}{slot}/{path}/{name}"


def head_of(slot: str) -> Keys:
    """The keys of a slot's own head."""
    return Keys(f"{HEAD}@{slot}/*")


def as_own(head: Mapping[str, Tensor], slot: str) -> dict[str, Tensor]:
    """A head under the keys of a slot's own.

    >>> list(as_own({"head/classifier/bias": torch.zeros(1)}, "global"))
    ['head@global/classifier/bias']
    """
    return {f"{HEAD}@{slot}/{key.removeprefix(f'{HEAD}/')}": value for key, value in head.items()}


def first_heads(backbone: Backbone, seed: int, slots: Iterable[Slot] = ()) -> dict[str, Tensor]:
    """`first_head`, and the same for every slot that has a head of its own."""
    first = first_head(backbone, seed)
    for slot in slots:
        if slot.head:
            first |= as_own(HEADS.of(first), slot.name)
    return first


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
