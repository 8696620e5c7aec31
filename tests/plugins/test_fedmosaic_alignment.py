"""Alignment of A and B between backbones on toy features whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_plugins.fedmosaic import alignment as al

R, D_P, D_T, N = 4, 9, 13, 400  # rank, output sizes of pivot and target, observations


def normal(*shape: int, of: str) -> Tensor:
    return torch.randn(*shape, generator=torch_rng("alignment", of), dtype=torch.float64)


def latents() -> Tensor:
    """z of the pivot: correlated coordinates of unequal variance and non-zero mean, (N, r)."""
    return normal(N, R, of="z") @ normal(R, R, of="mixing") + torch.tensor([3.0, -1.0, 0.5, 10.0])


def b_pivot() -> Tensor:
    return al.orthonormal(D_P, R, torch_rng("b pivot")).double()


def rotation() -> Tensor:
    """An isometry from the pivot's output space into the target's, (d_t, d_p)."""
    return al.orthonormal(D_T, D_P, torch_rng("rotation")).double()


def covariances(x: Tensor, y: Tensor, batch: int = 64) -> al.Covariances:
    cov = al.Covariances.empty(x.shape[1], y.shape[1])
    for begin in range(0, len(x), batch):
        cov.add(x[begin : begin + batch], y[begin : begin + batch])
    return cov


def deviation(matrix: Tensor) -> float:
    """Largest entry of M^T M - I."""
    return (matrix.T @ matrix - torch.eye(matrix.shape[1], dtype=matrix.dtype)).abs().max().item()


# A -------------------------------------------------------------------------------------------------------------------


def test_a_loss_by_hand() -> None:
    pivot, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    assert al.a_distances(pivot, target).tolist() == [5.0, 25.0]  # 1 + 4 and 9 + 16
    loss = al.a_loss(pivot.requires_grad_(), target)
    assert loss.item() == 15.0
    loss.backward()
    assert target.grad.tolist() == [[-1, -2], [3, 4]]  # 2 (z_t - z_p) / 2
    assert pivot.grad is None  # the pivot is frozen


def test_row_penalty_by_hand() -> None:
    # A A^T = [[2, 1], [1, 1]], minus I = [[1, 1], [1, 0]]: three ones. lambda 1/2.
    assert al.a_penalty(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), 0.5).item() == 1.5
    assert al.a_penalty(al.orthonormal(3, 7, torch_rng("a")), 0.5).item() < 1e-10


def test_column_penalty_equals_its_definition() -> None:
    a = normal(3, 6, of="a").requires_grad_()
    unit = a / a.norm(dim=0)
    cosines = unit.T @ unit
    definition = 0.5 * cosines[~torch.eye(6, dtype=torch.bool)].square().mean()
    mine = al.a_penalty(a, 0.5, "official_columns")
    torch.testing.assert_close(mine, definition)
    torch.testing.assert_close(torch.autograd.grad(mine, a)[0], torch.autograd.grad(definition, a)[0])
    with pytest.raises(UserError, match="Did you mean 'rows'"):
        al.a_penalty(a, 0.5, "row")  # type: ignore[arg-type]


def test_polar_by_hand_and_in_general() -> None:
    # diag(2, -3): nearest orthonormal diag(1, -1). Scaling rows of orthonormal rows does not turn them.
    torch.testing.assert_close(al.polar(torch.diag(torch.tensor([2.0, -3.0]))), torch.diag(torch.tensor([1.0, -1.0])))
    a = al.orthonormal(3, 8, torch_rng("polar"))
    torch.testing.assert_close(al.polar(torch.diag(torch.tensor([0.1, 1.0, 9.0])) @ a), a)
    wild = normal(8, 3, of="wild").float()
    nearest = al.polar(wild)
    assert nearest.dtype == torch.float32
    assert deviation(nearest) < 1e-4
    for other in range(20):  # no other orthonormal matrix is nearer
        rival = al.orthonormal(8, 3, torch_rng("rival", other))
        assert (wild - nearest).norm() < (wild - rival).norm()
    assert deviation(al.polar(torch.zeros(5, 2))) < 1e-4  # no direction at all: still orthonormal


def test_a_alignment_by_descent_reads_the_same_numbers() -> None:
    # The target's hidden states are the pivot's, isometrically embedded: an orthonormal A with zero loss exists.
    h_p = normal(64, 6, of="h").float()
    h_t = h_p @ al.orthonormal(10, 6, torch_rng("embedding")).T
    a_p = al.orthonormal(3, 6, torch_rng("a pivot"))
    a_t = al.orthonormal(3, 10, torch_rng("a target")).requires_grad_()
    z_p = h_p @ a_p.T
    start = al.a_loss(z_p, h_t @ a_t.T).item()
    optimiser = torch.optim.Adam([a_t], lr=0.03)
    for _ in range(300):
        optimiser.zero_grad()
        (al.a_loss(z_p, h_t @ a_t.T) + al.a_penalty(a_t, 0.5)).backward()
        optimiser.step()
    aligned = al.polar(a_t.detach())
    assert deviation(aligned.T) < 1e-4
    assert al.a_loss(z_p, h_t @ aligned.T).item() < 1e-3 * start


# Covariances ---------------------------------------------------------------------------------------------------------


def test_streamed_covariances_equal_those_of_all_data() -> None:
    x, y = latents() + 1000.0, normal(N, 3, of="y")
    cov_x, cov_y, cross = covariances(x, y, batch=37).centred()
    torch.testing.assert_close(cov_x, torch.cov(x.T, correction=0), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(cov_y, torch.cov(y.T, correction=0))
    joint = torch.cov(torch.cat([x, y], dim=1).T, correction=0)
    torch.testing.assert_close(cross, joint[:R, R:], atol=1e-8, rtol=1e-8)


def test_covariances_survive_a_message() -> None:
    cov = covariances(latents(), normal(N, 3, of="y"))
    again = al.Covariances.from_tensors(cov.tensors())
    assert again.count == N
    assert all(torch.equal(value, again.tensors()[name]) for name, value in cov.tensors().items())
    cov.add(torch.ones(1, R), torch.ones(1, 3))
    assert not torch.equal(again.xx, cov.xx)  # not shared


def test_covariances_refuse_what_does_not_match() -> None:
    cov = al.Covariances.empty(2, 2)
    with pytest.raises(UserError, match="3 observations of one backbone and 4 of the other"):
        cov.add(torch.ones(3, 2), torch.ones(4, 2))
    cov.add(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(UserError, match="1 matched observations"):
        cov.centred()


# CCA -----------------------------------------------------------------------------------------------------------------


def test_correlation_of_two_numbers_by_hand() -> None:
    # x = -1 -1 1 1 and y = 2 x + (1 -1 1 -1): var x = 1, var y = 4 + 1 = 5, cov = 2, correlation 2 / sqrt 5.
    # pi_x = 1, pi_y = 1 / sqrt 5.
    x = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])
    pair = al.cca(covariances(x, 2 * x + torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])), rank=1, ridge=0.0)
    assert pair.correlations.item() == pytest.approx(2 / math.sqrt(5))
    assert pair.pi_x.item() == pytest.approx(1.0)
    assert pair.pi_y.item() == pytest.approx(1 / math.sqrt(5))
    # A ridge of 1 (relative) doubles both variances: the correlation halves, pi_x = 1 / sqrt 2.
    ridged = al.cca(covariances(x, 2 * x + torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])), rank=1, ridge=1.0)
    assert ridged.correlations.item() == pytest.approx(1 / math.sqrt(5))
    assert ridged.pi_x.item() == pytest.approx(1 / math.sqrt(2))


def test_cca_agrees_with_the_generalised_eigenvalue_problem() -> None:
    x, y = latents(), latents() @ normal(R, 6, of="to y") + 2.0 * normal(N, 6, of="noise")
    pair = al.cca(covariances(x, y), rank=3, ridge=0.0)
    cov = np.cov(np.hstack([x.numpy(), y.numpy()]).T, bias=True)
    xx, yy, xy = cov[:R, :R], cov[R:, R:], cov[:R, R:]
    squared = scipy.linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx, eigvals_only=True)[::-1]
    np.testing.assert_allclose(pair.correlations.numpy() ** 2, squared[:3], rtol=1e-8)
    u, v = x @ pair.pi_x, y @ pair.pi_y  # canonical variables: unit variance, correlated pair by pair
    correlation = torch.corrcoef(torch.cat([u, v], dim=1).T)
    torch.testing.assert_close(correlation[:3, :3], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(correlation[:3, 3:], torch.diag(pair.correlations))
    torch.testing.assert_close(u.var(dim=0, correction=0), torch.ones(3, dtype=torch.float64))


def test_cca_has_a_fixed_gauge() -> None:
    x, y = latents(), latents() @ normal(R, 6, of="to y") + normal(N, 6, of="noise")
    pair, again = (al.cca(covariances(x, y), rank=R) for _ in range(2))
    assert torch.equal(pair.pi_x, again.pi_x)
    assert torch.equal(pair.pi_y, again.pi_y)
    assert (pair.pi_x.gather(0, pair.pi_x.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_singular_features_are_handled_or_refused() -> None:
    z = latents()
    wide = z @ b_pivot().T  # rank 4 in 9 dimensions: 5 directions without variance
    pair = al.cca(covariances(wide, z), rank=R)
    assert pair.pi_x.isfinite().all()
    assert pair.correlations.min() > 0.99  # 1 less what the ridge takes
    with pytest.raises(
        UserError, match="rank 5 needs features that vary in 5 directions, but those of the pivot vary in 4"
    ):
        al.cca(covariances(wide, normal(N, 6, of="y")), rank=5)
    assert len(al.cca(covariances(wide, normal(N, 6, of="y")), rank=None).correlations) == 4
    with pytest.raises(UserError, match="a B with 4 columns needs as many directions, but the features have 3"):
        al.align_b(b_pivot(), covariances(wide, normal(N, 3, of="y")), rank=None)
    with pytest.raises(UserError, match="those of the target vary in 0"):
        al.cca(covariances(z, torch.ones(N, 6)), rank=1)


# B -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1e-1])
@pytest.mark.parametrize("reorthonormalise", [True, False])
def test_a_toy_rotation_is_recovered(ridge: float, reorthonormalise: bool) -> None:
    # The target's features are the pivot's, rotated into a larger space; so B_t must be the rotated B_p.
    z, b_p, q = latents(), b_pivot(), rotation()
    x = z @ b_p.T
    y = x @ q.T
    b_t = al.align_b(b_p, covariances(x, y), R, ridge=ridge, reorthonormalise=reorthonormalise)
    torch.testing.assert_close(b_t, q @ b_p, atol=1e-6, rtol=0)
    torch.testing.assert_close(z @ b_t.T, y, atol=1e-5, rtol=0)
    assert deviation(b_t) < 1e-4


def test_a_rotation_into_a_smaller_space_is_recovered() -> None:
    z, b_p = latents(), b_pivot()
    q = al.orthonormal(6, R, torch_rng("small")).double() @ b_p.T  # 9 -> 6, isometric on the span of B_p
    b_t = al.align_b(b_p, covariances(z @ b_p.T, z @ b_p.T @ q.T), R)
    torch.testing.assert_close(b_t, q @ b_p, atol=1e-6, rtol=0)


def test_the_published_whitening_recovers_the_rotation_as_well() -> None:
    z, b_p, q = latents(), b_pivot(), rotation()
    x = z @ b_p.T
    b_t = al.align_b(b_p, covariances(x, x @ q.T), R, rule="official_whitening")
    torch.testing.assert_close(b_t, q @ b_p, atol=1e-5, rtol=0)


def test_outputs_of_a_module_tie_the_output_spaces_together() -> None:
    # Features W h that fill the whole space, no bases: the full rank brings every direction of B_p across.
    b_p, q = b_pivot(), rotation()
    x = normal(N, D_P, of="outputs") @ normal(D_P, D_P, of="mix") + 5.0
    b_t = al.align_b(b_p, covariances(x, x @ q.T), rank=None)
    torch.testing.assert_close(b_t, q @ b_p, atol=1e-6, rtol=0)
    # Cut to r directions, part of B_p is lost before it is made orthonormal again.
    cut = al.align_b(b_p, covariances(x, x @ q.T), rank=R)
    assert deviation(cut) < 1e-4
    assert (cut - q @ b_p).norm() > 0.1


@pytest.mark.parametrize("rule", ["cca", "official_whitening"])
def test_latents_with_bases_equal_outputs_of_b(rule: al.BRule) -> None:
    z_p, b_p = latents(), b_pivot()
    z_t = z_p @ (torch.eye(R) + 0.3 * normal(R, R, of="left over")).T + 0.2 * normal(N, R, of="noise")
    b_0 = al.orthonormal(D_T, R, torch_rng("start")).double()
    wide = al.align_b(b_p, covariances(z_p @ b_p.T, z_t @ b_0.T), R, rule=rule)
    narrow = al.align_b(b_p, covariances(z_p, z_t), R, rule=rule, pivot_basis=b_p, target_basis=b_0)
    torch.testing.assert_close(wide, narrow, atol=1e-7, rtol=0)
    # The alignment stays in the span of the random start.
    torch.testing.assert_close(b_0 @ (b_0.T @ narrow), narrow, atol=1e-6, rtol=0)


def test_with_a_perfect_a_the_random_start_comes_back() -> None:
    z, b_p = latents(), b_pivot()
    b_0 = al.orthonormal(D_T, R, torch_rng("start")).double()
    b_t = al.align_b(b_p, covariances(z @ b_p.T, z @ b_0.T), R)
    torch.testing.assert_close(b_t, b_0, atol=1e-6, rtol=0)


def test_orthonormality_needs_the_last_step() -> None:
    z_p, b_p = latents(), b_pivot().float()
    z_t = z_p * torch.tensor([1.0, 2.0, 0.5, 1.0]) + 0.5 * normal(N, R, of="noise")
    cov = covariances(z_p @ b_p.double().T, z_t @ al.orthonormal(D_T, R, torch_rng("start")).double().T)
    b_t = al.align_b(b_p, cov, R)
    assert b_t.dtype == torch.float32
    assert deviation(b_t) < 1e-4
    assert deviation(al.align_b(b_p, cov, R, reorthonormalise=False)) > 0.1  # the paper's claim does not hold
    assert deviation(al.align_b(b_p, cov, R, rule="official_whitening")) > 0.1
    assert torch.equal(b_t, al.align_b(b_p, cov, R))
    with pytest.raises(UserError, match="Did you mean 'cca'"):
        al.align_b(b_p, cov, R, rule="ccs")  # type: ignore[arg-type]
