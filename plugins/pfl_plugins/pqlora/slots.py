"""The layer that applies any number of PQ-LoRA slots at one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_platform.adapters.host import FROZEN
from pfl_platform.adapters.surfaces import Control, Factors, Site, SlotLayer
from pfl_plugins.lora.layer import dropped, product


class PQSlots(SlotLayer):
    """`W x + sum_s mix_s * scale * B (P_s A x + Q_s)` (FedMosaic, Eq. 5 and 7).

    All slots have the same frozen A and B, so A x and the product with B are made once for all of them. When the
    mix is the same for all rows, the slots' P and Q are mixed before they meet data (averaging P and Q equals
    averaging outputs)."""

    row_parts = frozenset({"P", "Q"})

    def __init__(
        self, site: Site, tuner: nn.Module, slots: Sequence[str], control: Control, scale: float, dropout: float
    ) -> None:
        super().__init__(site, cast(nn.Module, tuner.base_layer), control)
        self.pqlora_P = cast(nn.ParameterDict, tuner.pqlora_P)
        self.pqlora_Q = cast(nn.ParameterDict, tuner.pqlora_Q)
        self.register_buffer("a", cast(Mapping[str, Tensor], tuner.pqlora_A)[slots[0]])
        self.register_buffer("b", cast(Mapping[str, Tensor], tuner.pqlora_B)[slots[0]])
        self.scale = scale
        self.dropout = dropout

    a: Tensor
    b: Tensor

    def slot_params(self, slot: str) -> Mapping[str, Tensor]:
        if slot == FROZEN:
            return {"A": self.a, "B": self.b}
        if slot not in self.pqlora_P:
            return {}
        return {"P": self._p(slot), "Q": self._q(slot)}

    def _p(self, slot: str) -> Tensor:
        return cast(Tensor, self.pqlora_P[slot])

    def _q(self, slot: str) -> Tensor:
        return cast(Tensor, self.pqlora_Q[slot])

    def _of(self, part: str, slot: str) -> Tensor:
        """A slot's P or Q, with a leading dimension where rows have their own."""
        own = self._p(slot) if part == "P" else self._q(slot)
        return self.by_row.get(f"{slot}/{part}", own)

    def mixture(self, x: Tensor, weights: Mapping[str, float | Tensor]) -> Tensor:
        x = x.to(self.a.dtype)
        if self.dropout > 0:
            x = dropped(x, self.dropout, self.control.chances(self.site, x))
        z = functional.linear(x, self.a)
        if all(not isinstance(weight, Tensor) or weight.dim() == 0 for weight in weights.values()):
            y = _affine(
                z,
                _weighted([(weight, self._of("P", slot)) for slot, weight in weights.items()]),
                _weighted([(weight, self._of("Q", slot)) for slot, weight in weights.items()]),
            )
        else:
            y = torch.zeros_like(z)
            for slot, weight in weights.items():
                per_row = isinstance(weight, Tensor) and weight.dim() == 1
                share = weight[:, None, None] if per_row else weight  # type: ignore[index]
                y = y + share * _affine(z, self._of("P", slot), self._of("Q", slot))
        return functional.linear(y * self.scale, self.b)

    def factors(self, slot: str) -> Factors:
        """U = B, V = scale * P A, c = scale * B Q; U is the same for all slots, so a mixture keeps rank r."""
        return Factors(self.b, self.scale * self._p(slot) @ self.a, self.scale * self.b @ self._q(slot))


def _affine(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """`P z + Q` at each position, for one P and Q or one of each for groups of rows."""
    y = product(z, p)
    return y + (q if q.dim() == 1 else q.repeat_interleave(y.shape[0] // q.shape[0], dim=0)[:, None, :])


def _weighted(parts: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    first_weight, first = parts[0]
    total = first if isinstance(first_weight, float | int) and first_weight == 1 else first_weight * first
    for weight, value in parts[1:]:
        total = total + weight * value
    return total
