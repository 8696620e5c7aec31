"""Potara's closed-form weights (3.3, 3.4 and appendix B of 2602.18658), on plain tensors.

The printed formulas of the weights are derived here from the statements around them: with the variances S_g and S_l of
the two models (inverse Fisher information), their covariance S_c, and a = tr S_g, b = tr S_l, c = tr S_c, the merged
model `lambda g + (1 - lambda) l` has the trace `lambda^2 a + (1 - lambda)^2 b + 2 lambda (1 - lambda) c`, which is
least at `lambda = (b - c) / (a + b - 2 c)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNDEFINED = 0.5
"""The weight where the formula gives none: the two models determine their params equally well, in the same way."""


@dataclass
class Moments:
    """Sums over samples of two models' gradients of the same coordinates: g (federated), l (local); float64.

    Memory: five numbers per coordinate, whatever the number of samples.
    """

    g: Tensor
    l: Tensor  # noqa: E741  # the letter of the paper's index
    gg: Tensor
    ll: Tensor
    gl: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, like: Tensor) -> Moments:
        zeros = [torch.zeros_like(like, dtype=torch.float64) for _ in range(5)]
        return cls(zeros[0], zeros[1], zeros[2], zeros[3], zeros[4])

    def add(self, g: Tensor, l: Tensor) -> None:  # noqa: E741
        """One sample's gradients at the two models."""
        g, l = g.double(), l.double()  # noqa: E741
        self.g += g
        self.l += l
        self.gg += g * g
        self.ll += l * l
        self.gl += g * l
        self.count += 1

    def fisher(self) -> tuple[Tensor, Tensor]:
        """The diagonal empirical Fisher information of both (Eq. 19): means of squared gradients."""
        return self.gg / self.count, self.ll / self.count

    def correlation(self) -> Tensor:
        """rho of Eq. 57, per coordinate in [-1, 1]; 0 where a gradient does not vary."""
        n = self.count
        variances = [_spread(total / n, square / n) for total, square in ((self.g, self.gg), (self.l, self.ll))]
        both = (variances[0] * variances[1]).sqrt()
        covariance = self.gl / n - self.g * self.l / n**2
        return torch.where(both > 0, covariance / torch.where(both > 0, both, 1.0), 0.0).clamp(-1.0, 1.0)


def _spread(mean: Tensor, square: Tensor) -> Tensor:
    """The variance; what rounding leaves of a constant's (some 1e-16 of its square) is none."""
    variance = square - mean.square()
    return torch.where(variance > 1e-12 * square, variance, 0.0)


class Traces(NamedTuple):
    """a = tr S_g (federated), b = tr S_l (local), c = tr S_c."""

    a: float
    b: float
    c: float

    def merged(self, weight: float) -> float:
        """Trace of the merged model's variance at a weight of the federated one (Eq. 13).

        >>> Traces(2.0, 1.0, 0.0).merged(1.0), Traces(3.0, 1.0, 0.0).merged(0.25)
        (2.0, 0.75)
        """
        rest = 1.0 - weight
        return weight * weight * self.a + rest * rest * self.b + 2 * weight * rest * self.c

    def weight(self) -> float:
        """The federated model's weight (Eq. 17), in [0, 1]; the local model's is the rest.

        >>> Traces(3.0, 1.0, 0.0).weight()   # 1 / (3 + 1)
        0.25
        >>> Traces(3.0, 1.0, 1.0).weight(), Traces(1.0, 1.0, 1.0).weight()   # c = b: all local; c = a = b: undefined
        (0.0, 0.5)
        """
        whole = self.a + self.b - 2 * self.c
        if not whole > 1e-12 * (self.a + self.b):
            return UNDEFINED
        return min(1.0, max(0.0, (self.b - self.c) / whole))


def clipped_covariance(rho: Tensor, s_g: Tensor, s_l: Tensor) -> Tensor:
    """S_c of Eq. 58: `rho sqrt(S_g S_l)`, clipped to [0, min(S_g, S_l)], so that it is PSD and below both.

    >>> clipped_covariance(torch.tensor([1.0, 0.5, -1.0]), torch.tensor([4.0, 4.0, 4.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1., 1., 0.])
    """
    return torch.minimum((rho * (s_g * s_l).sqrt()).clamp(min=0.0), torch.minimum(s_g, s_l))


def common_damping(moments: Mapping[str, Moments], relative: float) -> float:
    """What is added to every Fisher information before it is inverted: `relative` times the mean over both models and
    all coordinates; 0 where nothing is known at all."""
    total = sum(float(part.sum()) for item in moments.values() for part in item.fisher())
    return relative * total / (2 * sum(item.gg.numel() for item in moments.values()))


def traces(moments: Mapping[str, Moments], damping: float) -> Traces:
    """Sums over all coordinates of the given tensors. `damping` is positive."""
    a = b = c = 0.0
    for item in moments.values():
        s_g, s_l = (1.0 / (information + damping) for information in item.fisher())
        a, b = a + float(s_g.sum()), b + float(s_l.sum())
        c += float(clipped_covariance(item.correlation(), s_g, s_l).sum())
    return Traces(a, b, c)


def merged(federated: Tensor, local: Tensor, weight: float) -> Tensor:
    """`lambda theta_g + (1 - lambda) theta_l` of one factor; float64 inside, the local model's dtype out.

    >>> merged(torch.tensor([4.0]), torch.tensor([0.0]), 0.25)
    tensor([1.])
    """
    return (weight * federated.double() + (1.0 - weight) * local.double()).to(local.dtype)
