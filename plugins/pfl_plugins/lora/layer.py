"""The layer that applies any number of LoRA slots at one site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_platform.adapters.surfaces import Control, Factors, Site, SlotLayer


def dropped(x: Tensor, rate: float, chances: Tensor | None) -> Tensor:
    """Inverted dropout by numbers in [0, 1) of the shape of x; x itself where there are none."""
    return x if chances is None else x * (chances >= rate) / (1.0 - rate)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x weight^T`, (rows, positions, d_out): x (rows, positions, d_in), one weight (d_out, d_in) or (groups, d_out,
    d_in), each for as many rows."""
    if weight.dim() == 2:
        return functional.linear(x, weight)
    grouped = x.reshape(weight.shape[0], -1, x.shape[-1])
    return torch.bmm(grouped, weight.transpose(1, 2)).reshape(*x.shape[:-1], -1)


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, from the first to the last."""
    found = iter(parts)
    total = next(found)
    for part in found:
        total = total + part
    return total


class LoraSlots(SlotLayer):
    """`W x + sum_s mix_s * scale * B_s A_s x` over the params of a peft LoRA layer.

    Slot after slot: stacked factors would be copies of all adapters, held in every layer until the way back.
    """

    row_parts = frozenset({"A", "B"})

    def __init__(self, site: Site, tuner: nn.Module, control: Control, scale: float, dropout: float) -> None:
        super().__init__(site, cast(nn.Module, tuner.base_layer), control)
        self.lora_A = cast(nn.ModuleDict, tuner.lora_A)
        self.lora_B = cast(nn.ModuleDict, tuner.lora_B)
        self.scale = scale
        self.dropout = dropout

    def slot_params(self, slot: str) -> Mapping[str, Tensor]:
        if slot not in self.lora_A:
            return {}
        return {"A": self._a(slot), "B": self._b(slot)}

    def _a(self, slot: str) -> Tensor:
        return cast(Tensor, self.lora_A[slot].weight)

    def _b(self, slot: str) -> Tensor:
        return cast(Tensor, self.lora_B[slot].weight)

    def mixture(self, x: Tensor, weights: Mapping[str, float | Tensor]) -> Tensor:
        x = x.to(self._a(next(iter(weights))).dtype)
        if self.dropout > 0:
            x = dropped(x, self.dropout, self.control.chances(self.site, x))
        return sum_of(self._share(x, slot, weight) for slot, weight in weights.items())

    def _share(self, x: Tensor, slot: str, weight: float | Tensor) -> Tensor:
        """`weight * scale * B A x` of one slot, from its own params or from those of each row."""
        a = self.by_row.get(f"{slot}/A", self._a(slot))
        b = self.by_row.get(f"{slot}/B", self._b(slot))
        if isinstance(weight, Tensor) and weight.dim() == 1:  # one per row
            weight = weight[:, None, None]
        return product(product(x, a) * (self.scale * weight), b)

    def factors(self, slot: str) -> Factors:
        return Factors(self.scale * self._b(slot), self._a(slot))
