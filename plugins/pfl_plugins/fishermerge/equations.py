"""Fisher-weighted averaging of two models (Matena and Raffel, 2111.09832, Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_plugins.fisher.rule import fisher_mean


def scaled(information: Mapping[str, Tensor], normalize: str) -> dict[str, Tensor]:
    """A model's information divided by its norm over all tensors; as it is when that is zero or not wanted.

    >>> scaled({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, "model")
    {'a': tensor([0.6000], dtype=torch.float64), 'b': tensor([0.8000], dtype=torch.float64)}
    """
    size = math.sqrt(sum(float(item.double().square().sum()) for item in information.values()))
    size = size if normalize == "model" and size > 0 else 1.0
    return {key: item.double() / size for key, item in information.items()}


def merged(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    information: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    weight: float,
    *,
    normalize: str = "model",
    floor: float = 1e-6,
) -> dict[str, Tensor]:
    """`((1 - lambda) F_1 theta_1 + lambda F_2 theta_2) / ((1 - lambda) F_1 + lambda F_2)`, entry by entry; float64.

    All arguments by the same keys. Information is floored at `floor` times its mean, so that entries of which neither
    model's data say anything get the plain weighted mean.
    """
    one, two = (scaled(item, normalize) for item in information)
    entries = sum(item.numel() for item in one.values()) * 2
    least = floor * sum(float(item.sum()) for part in (one, two) for item in part.values()) / entries
    return {
        key: fisher_mean(
            torch.stack([value.double(), second[key].double()]),
            torch.stack([one[key], two[key]]),
            [1.0 - weight, weight],
            least,
        )
        for key, value in first.items()
    }
