"""The regulariser of Ditto (Eq. 2 and Algorithm 1 of 2012.04221)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def proximal(params: Mapping[str, Tensor], anchors: Mapping[str, Tensor], lam: float) -> Tensor:
    """`lambda / 2 * ||v - w^t||^2`, whose gradient is `lambda (v - w^t)`; scalar, differentiable in params.

    params: v, by key; anchors: w^t under the same keys, constants. In the space of A and B, not of their product.

    >>> v = {"A": torch.tensor([3.0, 1.0], requires_grad=True)}
    >>> value = proximal(v, {"A": torch.tensor([1.0, 0.0])}, lam=0.5)   # 0.5 / 2 * (4 + 1)
    >>> value.backward()
    >>> value.item(), v["A"].grad
    (1.25, tensor([1.0000, 0.5000]))
    """
    parts = [(params[key] - anchor.detach().to(params[key])).square().sum() for key, anchor in sorted(anchors.items())]
    return 0.5 * lam * torch.stack(parts).sum()
