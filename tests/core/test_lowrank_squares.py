"""Singular values by eigenvectors: as exact as stated, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_platform.lowrank import decompose, squares
from pfl_platform.lowrank.basis import common_basis
from pfl_platform.lowrank.decompose import leading, svd
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.lowrank.squares import allowed, by_squares, right_vectors
from pfl_platform.rng import torch_rng

DTYPES = [torch.float64, torch.float32]


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squares, "SMALL", 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_rng("normal", seed, *shape), dtype=torch.float64)


def frame(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Orthonormal columns."""
    return torch.linalg.qr(normal(rows, columns, seed=seed)).Q


def with_values(values: list[float], d_out: int, inner: int, d_in: int, dtype: torch.dtype, scale: float) -> Delta:
    """`scale * up @ down` with these singular values; an inner dimension above their number is filled with directions
    that up does not read."""
    left, middle, right = (
        frame(d_out, len(values)),
        frame(inner, inner, 1),
        frame(d_in, inner if inner < d_in else d_in),
    )
    up = left * (torch.tensor(values, dtype=torch.float64) / abs(scale)) @ middle[:, : len(values)].T
    wide = torch.zeros(inner, d_in, dtype=torch.float64)
    wide[: right.shape[1]] = right.T
    return Delta(up.to(dtype), (middle @ wide).to(dtype), scale)


def truth(delta: Delta) -> Tensor:
    return delta.scale * delta.up.double() @ delta.down.double()


SIDES = [(12, 5, 9), (9, 5, 12), (5, 5, 9), (5, 8, 12), (12, 8, 5), (5, 14, 12), (12, 14, 5)]
"""d_out, inner, d_in: the inner dimension below both sides, between them, and above both."""


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_all_directions_are_those_of_the_dense_delta(
    sides: tuple[int, int, int], dtype: torch.dtype, scale: float
) -> None:
    delta = with_values([4.0, 3.0, 2.0, 1.0, 0.5], *sides, dtype, scale)
    found, dense = by_squares(delta), truth(delta)
    assert found is not None
    near = allowed(dtype)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(dense)[:5], rtol=near, atol=0)
    assert (found.sure, found.u.shape[1], found.vt.shape[0]) == (5, 5, 5)
    assert found.energy == pytest.approx(float(dense.square().sum()), rel=1e-12)
    for vectors in (found.u.T, found.vt):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=near)
    torch.testing.assert_close(found.u * found.values @ found.vt, dense, rtol=0, atol=4 * near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", [(12, 6, 9), (6, 9, 12), (12, 9, 6)])
def test_small_values_are_not_looked_for_where_squares_lose_them(
    sides: tuple[int, int, int], dtype: torch.dtype
) -> None:
    # float32 factors are rounded, so the smallest of their product is known from the product.
    delta = with_values([1.0, 0.8, 0.5, 0.4, 1e-3, 1e-5], *sides, dtype, 1.0)
    values = torch.linalg.svdvals(truth(delta))[:6]
    assert by_squares(delta) is None
    exact = svd(delta)
    assert exact.rank == 6
    torch.testing.assert_close(exact.s, values, rtol=0, atol=1e-12)
    torch.testing.assert_close(decompose.values(delta), values, rtol=0, atol=1e-12)
    found = leading(delta, 3)
    assert (found.svd.rank, found.values) == (3, None)
    torch.testing.assert_close(found.svd.s, values[:3], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.svd.u, exact.u[:, :3], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.svd.vt, exact.vt[:3], rtol=0, atol=1e-8)
    assert found.rest == pytest.approx(float(values[3:].square().sum()), rel=1e-9)
    # Where a small one is wanted, all are exact.
    whole = leading(delta, 5)
    assert whole.values is not None
    torch.testing.assert_close(whole.values, values, rtol=0, atol=1e-12)


def test_what_is_below_the_tolerance_is_left_out() -> None:
    delta = with_values([1.0, 0.5, 0.1, 0.05], 9, 4, 8, torch.float64, 1.0)
    found = leading(delta, 1, tol=0.2)
    assert found.values is not None
    assert found.values.tolist() == pytest.approx([1.0, 0.5])
    assert leading(delta, 3, tol=0.2).svd.rank == svd(delta, tol=0.2).rank == 2


def test_factors_that_cancel_are_told_from_small_ones() -> None:
    """The directions of a difference are rounding errors beside its terms, though they are of one size."""
    one = with_values([3.0, 2.0, 1.0], 9, 3, 8, torch.float64, 1.0)
    up = torch.cat([one.up, -one.up + 1e-9 * normal(9, 3)], dim=1)
    delta = Delta(up, torch.cat([one.down, one.down]))
    assert by_squares(delta, 1) is None
    torch.testing.assert_close(leading(delta, 1).svd.s, torch.linalg.svdvals(truth(delta))[:1], rtol=1e-5, atol=0)


def test_nothing_has_no_directions() -> None:
    for delta in (Delta(torch.zeros(5, 4), torch.ones(4, 6)), Delta(torch.ones(5, 4), torch.ones(4, 6), 0.0)):
        assert by_squares(delta) is None
        assert leading(delta, 2).svd.rank == svd(delta).rank == 0


def test_small_matrices_are_left_to_the_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squares, "SMALL", 256)
    assert by_squares(Delta(normal(300, 255), normal(255, 300))) is None
    assert right_vectors(normal(300, 255), torch.float32) is None
    assert right_vectors(frame(300, 256), torch.float32) is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_vectors_hold_their_error(dtype: torch.dtype) -> None:
    kept = 0
    for smallest in (0.5, 1e-1, 1e-2, 1e-3, 1e-4):
        values = torch.tensor([1.0, 0.7, 0.6, smallest], dtype=torch.float64)
        tall = frame(20, 4) * values @ frame(4, 4, 1).T
        found = right_vectors(tall, dtype)
        if found is None:
            assert smallest < (2e-2 if dtype == torch.float64 else 2e-3)
            continue
        kept += 1
        torch.testing.assert_close(found[0], values, rtol=allowed(dtype), atol=0)
        left = tall @ (found[1] / found[0])
        torch.testing.assert_close(left.T @ left, torch.eye(4, dtype=torch.float64), rtol=0, atol=allowed(dtype))
    assert kept == (2 if dtype == torch.float64 else 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_basis_by_squares_is_that_by_svd(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    deltas = [Delta(frame(30, 3, k).to(dtype) * (1.0 + k), normal(3, 25, seed=k).to(dtype), 0.5) for k in range(4)]
    quick = common_basis(deltas)
    assert len(quick.lefts) == 4
    monkeypatch.setattr(squares, "SMALL", 256)
    exact = common_basis(deltas)
    assert not exact.lefts
    torch.testing.assert_close(quick.values, exact.values, rtol=1e-9, atol=0)
    torch.testing.assert_close(quick.basis, exact.basis, rtol=0, atol=1e-8)
    for k in range(4):
        for weighted in (False, True):
            one, other = (found.coordinates(k, weighted=weighted).dense(torch.float64) for found in (quick, exact))
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_a_down_that_cannot_be_inverted_goes_by_the_basis() -> None:
    # Up makes good for the second row of down, which is almost the first: X is well conditioned, its triangle is not.
    turn = torch.tensor([[1.0, 0.0], [1.0, 1e-5]], dtype=torch.float64)
    bad = Delta(frame(9, 2) @ torch.linalg.inv(turn), turn @ frame(8, 2, 1).T)
    found = common_basis([bad])
    assert not found.lefts
    assert right_vectors(frame(9, 2), torch.float64) is not None  # what X is, up to a rotation
    torch.testing.assert_close(found.lift(found.coordinates(0)).dense(), truth(bad), rtol=0, atol=1e-9)


def test_order_and_threads_change_rounding_only() -> None:
    deltas = [Delta(normal(300, 80, seed=k), normal(80, 320, seed=k)) for k in range(4)]  # 320 directions in 300
    total = decompose.svd(Delta(torch.cat([d.up for d in deltas], 1), torch.cat([d.down for d in deltas])))
    turned = decompose.svd(Delta(torch.cat([d.up for d in deltas[::-1]], 1), torch.cat([d.down for d in deltas[::-1]])))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threaded = decompose.svd(Delta(torch.cat([d.up for d in deltas], 1), torch.cat([d.down for d in deltas])))
    finally:
        torch.set_num_threads(before)
    for other in (turned, threaded):
        torch.testing.assert_close(other.s, total.s, rtol=1e-9, atol=0)
        torch.testing.assert_close(other.u[:, :20], total.u[:, :20], rtol=0, atol=1e-6)
