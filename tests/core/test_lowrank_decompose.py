"""The SVD of factored deltas and truncation, against dense float64 and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_platform.errors import UserError
from pfl_platform.lowrank.decompose import Split, completion, svd, truncate
from pfl_platform.lowrank.deltas import Delta, norm, weighted_sum
from pfl_platform.lowrank.gauge import signs
from pfl_platform.rng import torch_rng

NEAR = {torch.float64: 1e-9, torch.float32: 1e-5}
SPLITS: list[Split] = ["left", "symmetric"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_rng("normal", seed), dtype=torch.float64)


def truth(delta: Delta) -> Tensor:
    return delta.scale * delta.up.double() @ delta.down.double()


def with_values(*values: float, d_out: int = 9, d_in: int = 7, seed: int = 0) -> Delta:
    """A delta with these singular values, in a gauge of no meaning."""
    count = len(values)
    left, right = (torch.linalg.qr(normal(d, count, seed=seed + d)).Q for d in (d_out, d_in))
    gauge = normal(count, count, seed=seed)
    up = left * torch.tensor(values, dtype=torch.float64) @ gauge
    return Delta(up, torch.linalg.solve(gauge, right.T))


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            self.numel = max(self.numel, one.numel() if isinstance(one, Tensor) else 0)
        return out


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    """Any sides, any inner dimension (above both sides as well), of smaller rank at times, any scale."""
    d_out, d_in, rank = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 10))
    seed, dtype = draw(st.integers(0, 10**6)), draw(st.sampled_from([torch.float64, torch.float32]))
    up, down = normal(d_out, rank, seed=seed).to(dtype), normal(rank, d_in, seed=seed + 1).to(dtype)
    if rank > 1 and draw(st.booleans()):
        up[:, -1], down[-1] = up[:, 0], -2 * down[0]  # the same direction twice
    return Delta(up, down, draw(st.sampled_from([1.0, -2.0, 1e-8, 0.0])))


# The SVD -------------------------------------------------------------------------------------------------------------


@given(deltas())
def test_svd_is_that_of_the_dense_delta(delta: Delta) -> None:
    found, dense = svd(delta), truth(delta)
    expected = torch.linalg.svdvals(dense)
    largest = float(expected[0])
    assert found.rank == int((expected > 1e-6 * largest).sum())
    assert found.u.dtype == found.s.dtype == found.vt.dtype == torch.float64
    assert float((found.s - expected[: found.rank]).abs().max() if found.rank else 0) <= 1e-9 * largest
    assert float((found.delta().dense(torch.float64) - dense).norm()) <= 1e-9 * max(largest, 1e-300)
    identity = torch.eye(found.rank, dtype=torch.float64)
    torch.testing.assert_close(found.u.T @ found.u, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.vt @ found.vt.T, identity, atol=1e-12, rtol=0)
    assert torch.equal(found.s, found.s.sort(descending=True).values)
    assert torch.equal(signs(found.vt), torch.ones(found.rank, dtype=torch.float64))
    assert found.delta().dtype == delta.dtype


def test_zero_has_rank_zero() -> None:
    for up, down, scale in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        found = svd(Delta(torch.full((4, 2), up), torch.full((2, 3), down), scale))
        assert (found.rank, found.u.shape, found.vt.shape, found.tail(1)) == (0, (4, 0), (0, 3), 0.0)
        assert torch.equal(found.delta().dense(), torch.zeros(4, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cancels_has_rank_zero(dtype: torch.dtype) -> None:
    """The rounding errors of a difference are no directions, though none is small beside the largest of them."""
    for seed in range(5):
        delta = Delta(normal(60, 8, seed=seed).to(dtype), normal(8, 50, seed=seed + 9).to(dtype), 1.7)
        assert svd(weighted_sum([delta] * 3, [0.1, 0.2, -0.3])).rank == 0
        other = Delta(normal(60, 1, seed=99).to(dtype), normal(1, 50, seed=98).to(dtype))
        assert svd(weighted_sum([delta, other, delta], [1.0, 1e-6, -1.0])).rank == 1


def test_tolerance_is_relative() -> None:
    # An absolute 1e-5 would drop all of this early update.
    assert svd(with_values(3e-9, 1e-9)).rank == 2
    assert svd(with_values(3e9, 1.0)).rank == 2


def test_tolerance_follows_what_came_in() -> None:
    values = (1.0, 1e-4, 1e-8, 1e-12)
    delta = with_values(*values)
    assert svd(delta).rank == 3
    assert svd(delta, tol=1e-3).rank == 1
    assert svd(delta, tol=0.0).rank == 4
    # The same numbers, held in float64 but known to come from float32.
    assert svd(Delta(delta.up, delta.down, precision=torch.float32)).rank == 2


def test_a_bad_gauge_does_no_harm() -> None:
    # Columns of 1e17 times rows of 1e-17: the delta is the identity.
    found = svd(Delta(torch.diag(torch.tensor([1e17, 1.0])).double(), torch.diag(torch.tensor([1e-17, 1.0])).double()))
    torch.testing.assert_close(found.s, torch.ones(2, dtype=torch.float64), rtol=1e-7, atol=0)


def test_repeated_values() -> None:
    delta = with_values(2.0, 2.0, 2.0, 1.0)
    found = svd(delta)
    torch.testing.assert_close(found.s, torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.delta().dense(), delta.dense())
    # Which two of three is open; how much is lost is not: sqrt((4 + 1) / 13).
    shorter, error = truncate(delta, 2)
    assert error == pytest.approx(math.sqrt(5 / 13))
    assert float((truth(shorter) - truth(delta)).norm() / norm(delta)) == pytest.approx(error)


def test_other_values_on_the_same_directions() -> None:
    found = svd(with_values(4.0, 2.0))
    flat = found.delta(torch.full((2,), 3.0))
    torch.testing.assert_close(flat.dense(), 3 * found.u @ found.vt)
    assert norm(flat) == pytest.approx(3 * math.sqrt(2))


def test_no_dense_delta_is_made() -> None:
    delta = Delta(normal(300, 3), normal(3, 200))
    with Largest() as largest:
        truncate(svd(delta), 2)
        norm(delta)
    assert 600 <= largest.numel <= 3 * 300


def test_threads_change_rounding_only() -> None:
    delta, before = Delta(normal(400, 32), normal(32, 300)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(truncate(delta, 8).delta)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0].up, results[1].up, rtol=0, atol=1e-6 * float(results[0].up.abs().max()))
    torch.testing.assert_close(results[0].down, results[1].down, rtol=0, atol=1e-6)


# Truncation ----------------------------------------------------------------------------------------------------------


@given(deltas(), st.integers(1, 8), st.sampled_from(SPLITS), st.sampled_from([1.0, 0.5, 16.0]))
def test_truncation_is_the_nearest_delta_of_the_rank(delta: Delta, rank: int, split: Split, scale: float) -> None:
    rank = min(rank, delta.shape[1])
    dense, near = truth(delta), NEAR[delta.dtype]
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ vt[:rank]
    shorter, error = truncate(delta, rank, split=split, scale=scale)
    assert (shorter.rank, shorter.scale, shorter.up.dtype, shorter.down.dtype) == (
        rank,
        scale,
        delta.dtype,
        delta.dtype,
    )
    size = max(float(s.norm()), 1e-300)
    if rank < len(s) and float(s[rank - 1] - s[rank]) > 1e-3 * float(s[0]):
        assert float((truth(shorter) - nearest).norm()) <= 100 * near * size
    distance = float((truth(shorter) - dense).norm())
    assert distance == pytest.approx(float(s[rank:].norm()), abs=10 * near * size)
    assert error * size == pytest.approx(float(s[rank:].norm()), abs=near * size)
    if split == "left":
        rows = shorter.down.double()
        torch.testing.assert_close(rows @ rows.T, torch.eye(rank).double(), atol=10 * near, rtol=0)


def test_truncation_by_hand() -> None:
    # diag(8, 6, 0): of rank 1, 6 of 10 are lost. At scale 2 the whole value is 4 in up, or 2 in each factor.
    delta = Delta.from_dense(torch.diag(torch.tensor([8.0, 6.0, 0.0])))
    shorter, error = truncate(delta, 1, scale=2.0)
    assert (shorter.up.flatten().tolist(), shorter.down.tolist()) == ([4.0, 0.0, 0.0], [[1.0, 0.0, 0.0]])
    assert error == pytest.approx(0.6)
    even, _ = truncate(delta, 1, split="symmetric", scale=2.0)
    assert (even.up.flatten().tolist(), even.down.tolist()) == ([2.0, 0.0, 0.0], [[2.0, 0.0, 0.0]])
    assert even.dense().tolist() == shorter.dense().tolist() == [[8, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_one_svd_serves_adapters_of_differing_rank() -> None:
    delta = with_values(4.0, 3.0, 2.0, 1.0)
    whole = svd(delta)
    for rank, scale in ((1, 2.0), (2, 0.5), (4, 1.0)):
        mine, again = truncate(whole, rank, scale=scale), truncate(delta, rank, scale=scale)
        assert torch.equal(mine.delta.up, again.delta.up)
        assert mine.error == again.error == pytest.approx(math.sqrt(sum(s * s for s in range(1, 5 - rank)) / 30))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("values", [(), (3.0,), (3.0, 1.0)])
def test_a_smaller_delta_is_filled_up_so_that_it_can_learn(values: tuple[float, ...], split: Split) -> None:
    delta = with_values(*values) if values else Delta(torch.zeros(9, 1), torch.zeros(1, 7), name="idle")
    whole, known = svd(delta), len(values)
    filled, error = truncate(whole, 5, split=split, scale=2.0)
    assert error == 0.0
    torch.testing.assert_close(filled.dense(torch.float64), truth(delta))
    assert torch.equal(filled.up[:, known:], torch.zeros_like(filled.up[:, known:]))
    added = filled.down[known:].double()
    near = NEAR[delta.dtype]
    torch.testing.assert_close(added @ added.T, torch.eye(5 - known).double(), atol=near, rtol=0)
    torch.testing.assert_close(added @ whole.vt.T, torch.zeros(5 - known, known).double(), atol=near, rtol=0)
    assert torch.equal(filled.down, truncate(delta, 5, split=split, scale=2.0).delta.down)
    assert not torch.equal(filled.down, truncate(delta, 5, split=split, scale=2.0, seed=1).delta.down)
    # d loss / d up = gradient down^T: the added columns of up move.
    assert bool(((normal(9, 7) @ filled.down.double().T).norm(dim=0) > 1e-3).all())


def test_completion_of_all_but_one() -> None:
    rows = torch.linalg.qr(normal(6, 5)).Q.T
    last = completion(rows, 1)
    whole = torch.cat([rows, last])
    torch.testing.assert_close(whole @ whole.T, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_rounded_at_the_end_only(dtype: torch.dtype) -> None:
    delta = Delta(normal(20, 3).to(dtype), normal(3, 30).to(dtype), 0.5)
    shorter, error = truncate(delta, 3)
    assert (shorter.up.dtype, shorter.down.dtype, error) == (dtype, dtype, 0.0)
    assert float((truth(shorter) - truth(delta)).norm() / norm(delta)) <= 2 * torch.finfo(dtype).eps


def test_order_of_clients_changes_rounding_only() -> None:
    clients = [Delta(normal(30, 4, seed=k), normal(4, 20, seed=50 + k), 1.0 + k) for k in range(4)]
    one, other = (truncate(weighted_sum(order), 6).delta for order in (clients, clients[::-1]))
    torch.testing.assert_close(one.up, other.up, rtol=0, atol=1e-9 * float(one.up.abs().max()))
    torch.testing.assert_close(one.down, other.down, rtol=0, atol=1e-9)


def test_what_no_adapter_can_have_is_refused() -> None:
    delta = with_values(2.0, 1.0)
    for rank in (0, 8):
        with pytest.raises(UserError, match=f"with 7 inputs has a rank from 1 to 7, not {rank}"):
            truncate(delta, rank)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="scale must be positive and finite"):
            truncate(delta, 1, scale=scale)
    with pytest.raises(UserError, match="'both'.* Known: left, symmetric"):
        truncate(delta, 1, split="both")  # type: ignore[arg-type]
