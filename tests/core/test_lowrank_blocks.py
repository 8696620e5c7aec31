"""Functions of the entries of dense deltas, a block at a time, against the dense way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_platform.errors import UserError
from pfl_platform.lowrank.blocks import Place, elementwise, elementwise_dense, walk
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng


def factored(
    seed: int, d_out: int, d_in: int, rank: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> Delta:
    rng = torch_rng("factored", seed)
    up = torch.randn(d_out, rank, generator=rng, dtype=torch.float64)
    down = torch.randn(rank, d_in, generator=rng, dtype=torch.float64)
    return Delta(up.to(dtype), down.to(dtype), scale, f"client-{seed}")


def dense(deltas: list[Delta]) -> Tensor:
    return torch.stack([delta.scale * delta.up.double() @ delta.down.double() for delta in deltas])


def elect(block: Tensor, place: Place) -> Tensor:
    """The mean of those that agree with the sign of the sum: as far from linear as it gets."""
    agree = block * block.sum(dim=0).sign() > 0
    return (block * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)


@st.composite
def several(draw: st.DrawFn) -> list[Delta]:
    d_out, d_in, seed = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    ranks, scales = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)), st.sampled_from([2.0, -0.5])
    return [factored(seed + k, d_out, d_in, rank, dtype, draw(scales)) for k, rank in enumerate(ranks)]


@given(several(), st.integers(1, 2000), st.sampled_from(["rows", "columns"]))
def test_blocks_cover_the_dense_deltas_within_the_budget(deltas: list[Delta], budget: int, along: str) -> None:
    whole, seen = dense(deltas), torch.full((len(deltas), *deltas[0].shape), torch.nan, dtype=torch.float64)
    memory = set()
    for (rows, columns), block in walk(deltas, along=along, budget=budget):  # type: ignore[arg-type]
        line = len(deltas) * deltas[0].shape[along == "rows"] * 8
        assert block.nbytes <= max(budget, line)
        assert seen[:, rows, columns].isnan().all()  # no entry twice
        seen[:, rows, columns] = block
        memory.add(block.data_ptr())
    torch.testing.assert_close(seen, whole, rtol=1e-12, atol=1e-12)
    assert len(memory) == 1  # one block is all that is held


def test_blocks_in_another_precision() -> None:
    deltas = [factored(0, 4, 6, 2, torch.bfloat16, 3.0)]
    ((_, block),) = walk(deltas, dtype=torch.float32)
    assert block.dtype == torch.float32
    torch.testing.assert_close(block.double(), dense(deltas), rtol=1e-5, atol=1e-5)


@given(several(), st.integers(1, 8), st.sampled_from([1, 300, 10**6]), st.booleans())
def test_truncated_result_is_that_of_the_dense_way(deltas: list[Delta], rank: int, budget: int, hold: bool) -> None:
    rank, whole = min(rank, deltas[0].shape[1]), elect(dense(deltas), (slice(None), slice(None)))
    u, s, vt = torch.linalg.svd(whole, full_matrices=False)
    near = 1e-9 if deltas[0].dtype == torch.float64 else 1e-5
    size = float(s.norm())
    shorter, error = elementwise(deltas, elect, rank, scale=2.0, budget=budget, hold=hold)
    assert (shorter.rank, shorter.scale, shorter.up.dtype) == (rank, 2.0, deltas[0].dtype)
    found = shorter.dense(torch.float64)
    rest = float(s[rank:].norm())
    assert float((found - whole).norm()) == pytest.approx(rest, abs=10 * near * size)
    assert error * size == pytest.approx(rest, abs=1e-9 * size)
    if rank >= len(s) or float(s[rank - 1] - s[rank]) > 1e-2 * float(s[0]):
        assert float((found - (u[:, :rank] * s[:rank]) @ vt[:rank]).norm()) <= 100 * near * size
    if deltas[0].dtype == torch.float64 and rank == min(whole.shape):
        torch.testing.assert_close(elementwise_dense(deltas, elect, budget=budget), whole, rtol=1e-9, atol=1e-9)


def test_result_by_hand() -> None:
    # Entries (4, -1, 0 | 0, 2, 3) and (2, 2, 0 | 0, 1, -3): agreed means (3, 2, 0 | 0, 1.5, 0).
    one = Delta.from_dense(torch.tensor([[4.0, -1.0, 0.0], [0.0, 2.0, 3.0]]))
    two = Delta.from_dense(torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, -3.0]]))
    expected = torch.tensor([[3.0, 2.0, 0.0], [0.0, 1.5, 0.0]])
    assert torch.equal(elementwise_dense([one, two], elect), expected)
    torch.testing.assert_close(elementwise([one, two], elect, 3).delta.dense(), expected)


@pytest.mark.parametrize(("d_out", "d_in"), [(90, 20), (20, 90), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_larger_results(d_out: int, d_in: int, dtype: torch.dtype) -> None:
    deltas = [factored(k, d_out, d_in, 2, dtype, 1.0 + k) for k in range(3)]
    u, s, vt = torch.linalg.svd(elect(dense(deltas), (slice(None), slice(None))), full_matrices=False)
    for inside in (torch.float32, torch.float64):
        shorter, error = elementwise(deltas, elect, 5, budget=3 * 8 * 7 * max(d_out, d_in), dtype=inside)
        near = 1e-9 if dtype == inside == torch.float64 else 1e-5
        expected = (u[:, :5] * s[:5]) @ vt[:5]
        assert float((shorter.dense(torch.float64) - expected).norm() / expected.norm()) <= near
        assert error == pytest.approx(float(s[5:].norm() / s.norm()), rel=near)


def test_functions_know_where_they_are() -> None:
    """A mask by place is the same in both walks, whatever the blocks."""
    deltas = [factored(k, 30, 24, 2) for k in range(2)]
    mask = torch.rand(30, 24, generator=torch_rng("mask")) < 0.5
    whole = (dense(deltas) * mask).sum(dim=0)

    def masked(block: Tensor, place: Place) -> Tensor:
        return (block * mask[place]).sum(dim=0)

    for budget in (1, 5000, 10**6):
        torch.testing.assert_close(elementwise(deltas, masked, 24, budget=budget).delta.dense(), whole)
        torch.testing.assert_close(elementwise_dense(deltas, masked, budget=budget), whole)


@pytest.mark.parametrize(("options", "calls"), [({}, 2), ({"hold": True}, 1)])
def test_holding_the_result_halves_the_calls(options: dict[str, bool], calls: int) -> None:
    deltas, places = [factored(k, 12, 10, 2) for k in range(2)], []

    def first(block: Tensor, place: Place) -> Tensor:
        places.append(place[0].start)
        return block[0]  # a view of memory that the next block takes over

    found = elementwise(deltas, first, 2, budget=2 * 10 * 8 * 4, **options).delta
    assert places == [0, 4, 8] * calls
    torch.testing.assert_close(found.dense(), deltas[0].dense())


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


@pytest.mark.parametrize(("d_out", "d_in"), [(600, 40), (40, 600)])
def test_the_result_is_never_held_as_a_whole(d_out: int, d_in: int) -> None:
    deltas = [factored(k, d_out, d_in, 2) for k in range(3)]
    with Largest() as largest:
        elementwise(deltas, elect, 4, budget=3 * 40 * 8 * 50)
    assert largest.numel == 3 * 40 * 50  # one block of all deltas; the result has 24 000 entries


def test_a_result_of_zeros_can_still_learn() -> None:
    one = factored(0, 6, 5, 2, torch.float32)
    shorter, error = elementwise([one], lambda block, place: 0 * block[0], 3)
    assert (error, bool(shorter.up.any()), shorter.rank) == (0.0, False, 3)
    torch.testing.assert_close(shorter.down @ shorter.down.T, torch.eye(3))


def test_what_cannot_be_is_refused_before_any_walk() -> None:
    def never(block: Tensor, place: Place) -> Tensor:
        raise AssertionError

    one = factored(0, 6, 5, 2)
    with pytest.raises(UserError, match="with 5 inputs has a rank from 1 to 5, not 0"):
        elementwise([one], never, 0)
    with pytest.raises(UserError, match="'client-1' is 6 x 4 and that of 'client-0' 6 x 5"):
        elementwise([one, factored(1, 6, 4, 2)], never, 1)
    with pytest.raises(UserError, match="There is no delta"):
        elementwise_dense([], never)
    with pytest.raises(ValueError, match=r"made \(1, 6, 5\) of \(1, 6, 5\)"):
        elementwise_dense([one], lambda block, place: block)
