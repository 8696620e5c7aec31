"""How local and global adapters are mixed at a site (Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_platform.adapters.surfaces import LearnedMix, Site


class ScalarGate(LearnedMix):
    """`(1 - sigmoid(beta)) local + sigmoid(beta) global`, one learnable beta per site, 0 at first: half and half."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, mask: Tensor | None, rng: torch.Generator | None) -> Mapping[str, Tensor]:
        share = torch.sigmoid(self.beta)
        return {"local": 1.0 - share, "global": share}

    def static(self) -> Mapping[str, float]:
        share = float(torch.sigmoid(self.beta.detach()))
        return {"local": 1.0 - share, "global": share}


class InputGate(LearnedMix):
    """The published code's gate: `sigmoid(mean over tokens of (x w + noise))` weighs the global output, w (d_in,)
    zero at first.

    In training the noise per token has standard deviation softplus(0) = 0.69: the published code computes the
    noise's scale without gradient, so its weight stays at zero for ever and is left out here. Padding is not
    averaged (published code: one row per batch, so it has none).
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(site.in_features))

    def forward(self, x: Tensor, mask: Tensor | None, rng: torch.Generator | None) -> Mapping[str, Tensor]:
        scores = x.to(self.weight.dtype) @ self.weight
        if rng is not None:
            std = float(functional.softplus(torch.zeros(())))
            noise = torch.randn(scores.shape, generator=rng, dtype=scores.dtype)
            scores = scores + std * noise.to(scores.device)
        if mask is None:
            mean = scores.mean(dim=1)
        else:
            weight = mask.to(scores.dtype)
            mean = (scores * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        share = torch.sigmoid(mean)[:, None, None]
        return {"local": 1.0 - share, "global": share}
