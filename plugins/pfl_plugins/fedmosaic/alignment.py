"""Aligning the frozen A and B of PQ-LoRA between two backbones, before round 1 (FedMosaic, 4.2.2, A.5, Alg. 3, 4).

The *pivot* is the smallest backbone; its A and B stay as they were drawn. Every other backbone (the *target*) gets an
A that reads the same r numbers from the same text, and a B that is matched by canonical correlations. This page is
the mathematics on features that were already matched (see `spans`); who collects them is no concern of it. Sizes: r
the rank, d_in and d_out the sides of the adapted module, p for the pivot and t for the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pfl_platform.errors import UserError, nearest
from pfl_plugins.pqlora.tuner.layer import orthonormal

__all__ = [
    "CanonicalPair",
    "Covariances",
    "a_distances",
    "a_loss",
    "a_penalty",
    "align_b",
    "cca",
    "orthonormal",
    "polar",
]

Penalty = Literal["rows", "official_columns"]
BRule = Literal["cca", "official_whitening"]


def a_distances(z_pivot: Tensor, z_target: Tensor) -> Tensor:
    """Squared distance `||A_p h_p - A_t h_t||^2` of each observation. (G, r), (G, r) -> (G,)."""
    return (z_pivot.detach() - z_target).square().sum(dim=-1)


def a_loss(z_pivot: Tensor, z_target: Tensor) -> Tensor:
    """First term of Eq. 20: the mean over observations of the squared distance. A scalar; no gradient to the pivot.

    An observation is a piece of text that both backbones cut out. z: (G, r), what A makes of the module's input.

    >>> a_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2))
    tensor(2.5000)
    """
    return a_distances(z_pivot, z_target).mean()


def a_penalty(a: Tensor, lam: float, kind: Penalty = "rows") -> Tensor:
    """Second term of Eq. 20: how far A (r, d_in) is from orthonormal, times `lam`. A scalar, differentiable.

    kind: "rows" is `||A A^T - I_r||_F^2`. The paper prints A^T A, which is d_in x d_in of rank r and can never be the
        identity; A A^T = I is what it demands everywhere else (Eq. 18). "official_columns" is the published code's: the
        mean squared cosine between different columns of A (a zero column has cosine 0 with all).

    >>> a_penalty(2 * torch.eye(2), lam=0.5)                                       # 0.5 * (3^2 + 3^2)
    tensor(9.)
    >>> a_penalty(torch.tensor([[1.0, 1.0]]), lam=0.5, kind="official_columns")    # two equal columns
    tensor(0.5000)
    """
    if kind not in get_args(Penalty):
        raise UserError(f"Alignment: a_penalty cannot be '{kind}'.{nearest(kind, get_args(Penalty))}")
    if kind == "rows":
        eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
        return (a @ a.T - eye).square().sum() * lam
    columns = a.shape[1]
    unit = a / a.norm(dim=0, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)
    # The squared entries of the (d_in, d_in) matrix of cosines sum to those of the small (r, r) product.
    off_diagonal: Tensor = (unit @ unit.T).square().sum() - unit.square().sum(dim=0).square().sum()
    return off_diagonal * (lam / max(columns * (columns - 1), 1))


def polar(matrix: Tensor) -> Tensor:
    """Eq. 21-23: the nearest matrix with orthonormal rows (wide) or columns (tall), `U V^T` of the SVD.

    Any floating dtype and shape, computed in float64, returned in the matrix's dtype. A rank-deficient matrix has no
    nearest one; then the SVD's own completion is taken, which still is orthonormal.

    >>> polar(torch.tensor([[0.0, 3.0], [0.5, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    nearest_one: Tensor = (u @ vh).to(matrix.dtype)
    return nearest_one.contiguous()


@dataclass
class Covariances:
    """Sums from which means and (cross-)covariances of two feature sets follow, so that no feature is kept. float64.

    count: number of observations. sum_x (d_x,), sum_y (d_y,), xx (d_x, d_x), yy (d_y, d_y), xy (d_x, d_y).
    """

    count: int
    sum_x: Tensor
    sum_y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    @classmethod
    def empty(cls, d_x: int, d_y: int) -> Covariances:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(0, zeros(d_x), zeros(d_y), zeros(d_x, d_x), zeros(d_y, d_y), zeros(d_x, d_y))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes in matched observations: x (G, d_x), y (G, d_y), any floating dtype and device."""
        if len(x) != len(y):
            raise UserError(f"Alignment got {len(x)} observations of one backbone and {len(y)} of the other.")
        x, y = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
        self.count += len(x)
        self.sum_x += x.sum(dim=0)
        self.sum_y += y.sum(dim=0)
        self.xx += x.T @ x
        self.yy += y.T @ y
        self.xy += x.T @ y

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of x and of y and their cross-covariance, with means taken out, divided by the count.

        Raises `UserError` with fewer than two observations.
        """
        if self.count < 2:
            raise UserError(f"Alignment has {self.count} matched observations: a covariance needs at least two.")
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        cov_x = self.xx / self.count - torch.outer(mean_x, mean_x)
        cov_y = self.yy / self.count - torch.outer(mean_y, mean_y)
        return (cov_x + cov_x.T) / 2, (cov_y + cov_y.T) / 2, self.xy / self.count - torch.outer(mean_x, mean_y)

    def tensors(self) -> dict[str, Tensor]:
        """For a message or a file; `from_tensors` gives the same object back, bit for bit."""
        sums = {"sum_x": self.sum_x, "sum_y": self.sum_y, "xx": self.xx, "yy": self.yy, "xy": self.xy}
        return {"count": torch.tensor(self.count), **sums}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Covariances:
        sums = {name: tensors[name].clone() for name in ("sum_x", "sum_y", "xx", "yy", "xy")}
        return cls(count=int(tensors["count"]), **sums)


@dataclass(frozen=True)
class CanonicalPair:
    """What `cca` finds, float64.

    pi_x (d_x, r), pi_y (d_y, r): x pi_x and y pi_y correlate pairwise and have unit variance, less the ridge's share.
    correlations (r,): between 0 and 1, falling.
    """

    pi_x: Tensor
    pi_y: Tensor
    correlations: Tensor


def cca(cov: Covariances, rank: int | None, ridge: float = 1e-4) -> CanonicalPair:
    """Canonical correlation analysis: the r directions of x and of y that correlate most, on centred features.

    Each covariance is written in its own eigenvectors. Directions without variance (features that lie in a subspace,
    as the outputs of a B do) are dropped first: nothing can be learnt about them, and whitening them would divide by
    zero. To the remaining variances `ridge` times their mean is added. Then `pi_x = E_x D_x^(-1/2) U` and
    `pi_y = E_y D_y^(-1/2) V`, with U S V^T the SVD of the whitened cross-covariance, cut to `rank`; None keeps as many
    directions as both have. All in float64. The sign of each pair is chosen so that the largest entry of the column of
    pi_x is positive: the same sums give the same projections.

    Raises `UserError` when x or y varies in fewer than `rank` directions.
    """
    cov_x, cov_y, cross = cov.centred()
    basis_x, width_x = _whitening(cov_x, ridge, rank or 1, "the pivot")
    basis_y, width_y = _whitening(cov_y, ridge, rank or 1, "the target")
    whitened = (basis_x.T @ cross @ basis_y) / torch.outer(width_x, width_y)
    u, s, vh = torch.linalg.svd(whitened, full_matrices=False)
    pi_x = basis_x @ (u[:, :rank] / width_x.unsqueeze(-1))
    pi_y = basis_y @ (vh[:rank].T / width_y.unsqueeze(-1))
    largest = pi_x.gather(0, pi_x.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return CanonicalPair(pi_x * sign, pi_y * sign, s[:rank].clamp(max=1.0))


def _whitening(cov: Tensor, ridge: float, rank: int, whose: str) -> tuple[Tensor, Tensor]:
    """Eigenvectors (d, k) of the directions with variance, and standard deviations (k,) with the ridge added."""
    values, vectors = torch.linalg.eigh(cov)
    # Rounding leaves null directions at about d * 2^-52 of the largest variance, or below zero.
    alive = values > values[-1] * len(values) * 1e-13
    found = int(alive.sum()) if values[-1] > 0 else 0
    if found < rank:
        raise UserError(
            f"Alignment at rank {rank} needs features that vary in {rank} directions, but those of {whose} vary in "
            f"{found}: use more public samples or a smaller rank."
        )
    kept = values[alive]
    return vectors[:, alive], (kept + ridge * kept.mean()).sqrt()


def align_b(
    b_pivot: Tensor,
    cov: Covariances,
    rank: int | None,
    *,
    rule: BRule = "cca",
    reorthonormalise: bool = True,
    ridge: float = 1e-4,
    pivot_basis: Tensor | None = None,
    target_basis: Tensor | None = None,
) -> Tensor:
    """The target's B (d_t, r), in b_pivot's dtype, from the pivot's B (d_p, r) and features matched in `cov`.

    cov: x are features of the pivot, y of the target. rank: how many canonical directions are kept; r for the outputs
        of B, None for all.
    rule: "cca" is Alg. 4 and the main text, `B_t = (Pi_t^+)^T Pi_p^T B_p` (Eq. 19 prints the wrong index on the
        inverse), followed by `polar`, because the product is orthonormal only when the canonical variances happen to be
        equal; `reorthonormalise=False` leaves that step out, as the paper does. "official_whitening" is the published
        code's: the map `S_t^(1/2) U V^T S_p^(-1/2)` between all directions applied to B_p, with an absolute ridge and
        no orthonormalisation whatever `reorthonormalise` says; `rank` is then unused.
    pivot_basis (d_p, k_p), target_basis (d_t, k_t): orthonormal columns. When given, `cov` holds features in these
        coordinates. The outputs of B are B z with z = A h, so feeding z with the two B as bases gives exactly the
        result of feeding B z, from r x r sums instead of d_out x d_out ones.

    What the features mean. The paper takes the outputs of B with the adapter's scale at 0 and P the identity: x = B_p
    z_p and y = B_0 z_t, where B_0 is the target's random start. All of y lies in the span of B_0, so B_t = B_0 T for
    an r x r matrix T; in the coordinates z, T = C_t^(1/2) V U^T C_p^(-1/2). The alignment never moves that span; it
    only says which direction within it goes with which column of B_p. If A's alignment were perfect (z_t = z_p), T
    would be the identity and B_t the random B_0 itself. Otherwise T is the mismatch that is left between z_t and z_p,
    carried over to the output side. The output spaces of two backbones are tied together by data only when the
    features are the adapted modules' own outputs W h (no bases). For those leave `rank` at None, since every
    direction that is cut off takes its share of B_p with it.

    Raises `UserError` for an unknown rule, and for features with too few directions (see `cca`).
    """
    if rule not in get_args(BRule):
        raise UserError(f"Alignment: the rule for B cannot be '{rule}'.{nearest(rule, get_args(BRule))}")
    start = b_pivot.double() if pivot_basis is None else pivot_basis.double().T @ b_pivot.double()
    if rule == "official_whitening":
        aligned = _whitening_map(cov, ridge) @ start
    else:
        pair = cca(cov, rank, ridge)
        if len(pair.correlations) < b_pivot.shape[1]:
            raise UserError(
                f"Alignment of a B with {b_pivot.shape[1]} columns needs as many directions, but the features have "
                f"{len(pair.correlations)} in common: use more public samples or a smaller rank."
            )
        aligned = torch.linalg.pinv(pair.pi_y).T @ (pair.pi_x.T @ start)
    if target_basis is not None:
        aligned = target_basis.double() @ aligned
    if rule == "cca" and reorthonormalise:
        aligned = polar(aligned)
    return aligned.to(b_pivot.dtype).contiguous()


def _whitening_map(cov: Covariances, ridge: float) -> Tensor:
    """`S_t^(1/2) U V^T S_p^(-1/2)` (d_t, d_p), U and V^T from the whitened cross-covariance of target and pivot."""
    cov_p, cov_t, cross = cov.centred()
    _, inverse_p = _roots(cov_p, ridge)
    root_t, inverse_t = _roots(cov_t, ridge)
    return root_t @ polar(inverse_t @ cross.T @ inverse_p) @ inverse_p


def _roots(cov: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of `cov + ridge * I`."""
    values, vectors = torch.linalg.eigh(cov)
    deviation = (values.clamp(min=0.0) + ridge).sqrt()
    return (vectors * deviation) @ vectors.T, (vectors / deviation) @ vectors.T
