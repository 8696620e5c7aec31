"""The layer through which a pass takes a slot's params in place of a module's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfl_platform.adapters.surfaces import Control, Factors, Site, SlotLayer
from pfl_platform.errors import UserError

Shared = Mapping[str, "tuple[WholeSlots, str]"]
"""Param of a module -> the layer before it that has the same param, and what it is called there (tied weights)."""


class WholeSlots(SlotLayer):
    """A module under `params + sum_s mix_s * (slot_s - params)`; under one slot alone these are the slot's.

    Any kind of module will do: a linear map, an embedding, a norm. The module's own params stay as they were loaded,
    and a slot's are float32: a backbone in half precision has a master copy in it.
    """

    low_rank = False

    def __init__(self, site: Site, base: nn.Module, control: Control, slots: Sequence[str], shared: Shared) -> None:
        super().__init__(site, base, control)
        self._shared = shared
        kept = {name: value for name, value in base.named_parameters(recurse=False) if name not in shared}
        self.slots = nn.ModuleDict()
        for slot in slots:
            copies = {name: nn.Parameter(value.detach().float().clone()) for name, value in kept.items()}
            self.slots[slot] = nn.ParameterDict(copies)

    def slot_params(self, slot: str) -> Mapping[str, Tensor]:
        return dict(cast(nn.ParameterDict, self.slots[slot])) if slot in self.slots else {}

    def param(self, slot: str, name: str) -> Tensor:
        """A slot's copy of one of the module's own params."""
        layer, there = self._shared.get(name, (self, name))
        found: Tensor = cast(nn.ParameterDict, layer.slots[slot])[there]
        return found

    def whole(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        found = {}
        for name, own in self.base.named_parameters(recurse=False):
            values = {slot: self.param(slot, name) for slot in weights}
            if len(values) == 1 and list(weights.values()) == [1]:
                (value,) = values.values()
            else:
                value = own + torch.stack([weight * (values[slot] - own) for slot, weight in weights.items()]).sum(0)
            found[name] = value.to(own.dtype)
        return found

    def forward(self, *args: Any, **options: Any) -> Any:
        mix = self.control.mix
        if self.shift is not None:
            raise UserError("The adapter 'modules' trains weights themselves; nothing can be added to them beside it.")
        if not mix:
            return self.base(*args, **options)
        if isinstance(mix, str) or any(isinstance(weight, Tensor) for weight in mix.values()):
            raise UserError(
                "The adapter 'modules' mixes slots by plain numbers; a method that learns its mix, or has one for each "
                "row, needs low-rank adapters."
            )
        return functional_call(
            self.base, self.whole({slot: float(weight) for slot, weight in mix.items()}), args, options
        )

    def mixture(self, x: Tensor, weights: Mapping[str, float | Tensor]) -> Tensor:
        raise NotImplementedError

    def factors(self, slot: str) -> Factors:
        raise NotImplementedError


def own_params(module: nn.Module) -> tuple[str, ...]:
    """Names of the params that are a module's own and not those of modules in it."""
    return tuple(name for name, _ in module.named_parameters(recurse=False))
