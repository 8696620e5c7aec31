"""The layer that applies any number of LoRA slots at one site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_platform.adapters.surfaces import Control, Factors, Site, SlotLayer


def dropped(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Inverted dropout whose mask comes from an addressed generator, on the device of x."""
    if x.device.type != "cpu":
        generator = torch.Generator(x.device).manual_seed(generator.initial_seed())
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * keep / (1.0 - rate)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x weight^T`, (rows, positions, d_out): x (rows, positions, d_in), one weight (d_out, d_in) or one per row."""
    return functional.linear(x, weight) if weight.dim() == 2 else torch.bmm(x, weight.transpose(1, 2))


class LoraSlots(SlotLayer):
    """`W x + sum_s mix_s * scale * B_s A_s x` over the params of a peft LoRA layer.

    All slots are computed together: their A are stacked to (slots * r, d_in) and their B to (d_out, slots * r), so
    that any number of slots costs two small products, and the mix weighs the columns in between.
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
        slots = list(weights)
        a, b = self._stacked(slots)
        x = x.to(a.dtype)
        rng = self.control.rng
        if self.dropout > 0 and rng is not None:
            x = dropped(x, self.dropout, rng(self.site.name))
        z = product(x, a)
        if len(slots) == 1 and isinstance(weights[slots[0]], float | int):
            z = z * (self.scale * weights[slots[0]])
        else:
            z = z * self._columns([weights[slot] for slot in slots], a.shape[-2] // len(slots), z)
        return product(z, b)

    def _stacked(self, slots: list[str]) -> tuple[Tensor, Tensor]:
        """A (slots * r, d_in) and B (d_out, slots * r); with a leading dimension where rows have their own."""
        a, b = [self._a(slot) for slot in slots], [self._b(slot) for slot in slots]
        if not self.by_row:
            return (a[0], b[0]) if len(slots) == 1 else (torch.cat(a), torch.cat(b, dim=1))
        rows = next(iter(self.by_row.values())).shape[0]
        a = [self.by_row.get(f"{slot}/A", own.expand(rows, -1, -1)) for slot, own in zip(slots, a, strict=True)]
        b = [self.by_row.get(f"{slot}/B", own.expand(rows, -1, -1)) for slot, own in zip(slots, b, strict=True)]
        return (a[0], b[0]) if len(slots) == 1 else (torch.cat(a, dim=1), torch.cat(b, dim=2))

    def _columns(self, weights: list[float | Tensor], rank: int, z: Tensor) -> Tensor:
        """The weight of each of the stacked columns, scale included; shape broadcastable to z."""
        parts = []
        for weight in weights:
            tensor = torch.as_tensor(weight, dtype=z.dtype, device=z.device)
            if tensor.dim() == 1:  # one per row
                tensor = tensor[:, None, None]
            parts.append(tensor.expand(*tensor.shape[:-1], rank) if tensor.dim() else tensor.expand(rank))
        if len({part.dim() for part in parts}) > 1:
            parts = [part.expand(z.shape[0], 1, rank) if part.dim() < 3 else part for part in parts]
        return torch.cat(parts, dim=-1) * self.scale

    def factors(self, slot: str) -> Factors:
        return Factors(self.scale * self._b(slot), self._a(slot))
