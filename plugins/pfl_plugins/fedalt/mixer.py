"""The mixer of FedALT: how much of a token passes the local adapter, and how much the rest of the world's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_platform.adapters.surfaces import LearnedMix, Site

LOCAL, ROW = "local", "row"


class TokenMixer(LearnedMix):
    """`softmax(G x)` over (rest of the world, local), G (2, d_in) without a bias; zeros at first: half and half."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, site.in_features))

    def forward(self, x: Tensor, mask: Tensor | None, rng: torch.Generator | None) -> Mapping[str, Tensor]:
        shares = functional.linear(x.to(self.weight.dtype), self.weight).softmax(dim=-1)
        return {ROW: shares[..., :1], LOCAL: shares[..., 1:]}
