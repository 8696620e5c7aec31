"""Factored deltas, their gauge and their similarity against dense float64, and numbers to redo by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta, gram, inner, mean, norm, weighted_sum
from pfl_platform.lowrank.gauge import align, canonical, drift, rotation, signs
from pfl_platform.lowrank.similarity import cosine, leading, subspace_alignment
from pfl_platform.rng import torch_rng

NEAR = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def factored(
    seed: int, d_out: int, d_in: int, rank: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> Delta:
    rng = torch_rng("factored", seed)
    up = torch.randn(d_out, rank, generator=rng, dtype=torch.float64)
    down = torch.randn(rank, d_in, generator=rng, dtype=torch.float64)
    return Delta(up.to(dtype), down.to(dtype), scale, f"client-{seed}")


def truth(delta: Delta) -> Tensor:
    """The dense delta of the factors as they are stored, float64."""
    return delta.scale * delta.up.double() @ delta.down.double()


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry expected."""
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch_rng("turn", seed), dtype=torch.float64)).Q


@st.composite
def several(draw: st.DrawFn) -> list[Delta]:
    """One to four deltas of one module, each with a rank and scale of its own; ranks may exceed both sides."""
    d_out, d_in, seed = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    ranks = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    scales = st.sampled_from([2.0, 0.25, -1.0, 1e-3])
    return [factored(seed + k, d_out, d_in, rank, dtype, draw(scales)) for k, rank in enumerate(ranks)]


# Deltas --------------------------------------------------------------------------------------------------------------


@given(several(), st.data())
def test_sum_and_products_are_those_of_the_dense_deltas(deltas: list[Delta], data: st.DataObject) -> None:
    near, dense = NEAR[deltas[0].dtype], torch.stack([truth(delta) for delta in deltas])
    size = st.floats(0.1, 4)
    weights = data.draw(st.lists(size, min_size=len(deltas), max_size=len(deltas)))
    factors = torch.tensor(weights, dtype=torch.float64)
    expected = (factors[:, None, None] * dense).sum(dim=0)
    largest = float((factors[:, None, None] * dense).abs().max())
    total = weighted_sum(deltas, weights)
    assert total.rank == sum(delta.rank for delta in deltas)
    assert float((total.dense().double() - expected).abs().max()) <= near * largest
    average = mean(deltas, weights).dense().double()
    assert float((average - expected / factors.sum()).abs().max()) <= near * largest / float(factors.sum())
    flat = dense.flatten(1)
    sizes = flat.norm(dim=1)
    assert ((gram(deltas) - flat @ flat.T).abs() <= 1e-12 * sizes[:, None] * sizes).all()
    for delta, size_of in zip(deltas, sizes.tolist(), strict=True):
        assert norm(delta) == pytest.approx(size_of, rel=1e-12)
        assert inner(delta, deltas[0]) == pytest.approx(
            float((truth(delta) * dense[0]).sum()), rel=1e-9, abs=1e-12 * size_of
        )


@given(several())
def test_blocks_and_transpose(deltas: list[Delta]) -> None:
    for delta in deltas:
        near, dense = NEAR[delta.dtype], truth(delta)
        assert off(delta.dense(), dense) <= near
        assert delta.dense().dtype == delta.dtype
        assert off(delta.T.dense(), dense.T) <= near
        assert off(delta.rows(slice(0, 1)), dense[:1]) <= max(near, 1e-9)
        assert delta.rows(slice(0, 1), torch.float64).dtype == torch.float64
        again = Delta.from_dense(delta.dense())
        assert torch.equal(again.dense(), delta.dense())
        assert again.rank == min(delta.shape)


def test_scale_is_folded_once() -> None:
    # up down = 6; twice that is 12; the mean of 12 and 2 is 7.
    one = Delta(torch.tensor([[2.0]]), torch.tensor([[3.0]]), scale=2.0)
    other = Delta(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    assert one.dense().item() == 12.0
    assert mean([one, other]).dense().item() == 7.0
    assert inner(one, other) == 24.0
    assert one.T.dense().item() == one.rows(slice(0, 1)).item() == one.cast().dense().item() == 12.0


def test_a_mean_is_over_those_that_are_there() -> None:
    # Of 100, 300 and 100 samples the third client is gone: 1/4 and 3/4, not 1/5 and 3/5.
    two = [Delta.from_dense(torch.full((1, 1), value)) for value in (4.0, 8.0)]
    assert mean(two, [100, 300]).dense().item() == 7.0
    assert mean(two, [0, 300]).dense().item() == 8.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_in_goes_out(dtype: torch.dtype) -> None:
    deltas = [factored(k, 9, 7, 2, dtype) for k in range(3)]
    total = weighted_sum(deltas)
    assert total.up.dtype == torch.float64
    assert total.dtype == total.dense().dtype == total.cast().up.dtype == dtype
    assert off(total.dense(), sum(map(truth, deltas), torch.zeros(9, 7))) <= NEAR[dtype]
    mixed = weighted_sum([deltas[0], factored(3, 9, 7, 2, torch.float64)])
    assert mixed.dtype == torch.float64


def test_what_cancels_has_no_norm() -> None:
    delta = factored(0, 40, 30, 4, torch.float32)
    nothing = weighted_sum([delta, delta], [1.0, -1.0])
    assert norm(nothing) <= 1e-14 * norm(delta)


def test_order_of_clients_changes_rounding_only() -> None:
    deltas = [factored(k, 12, 9, 1 + k) for k in range(5)]
    assert off(mean(deltas[::-1], [5, 4, 3, 2, 1]).dense(), mean(deltas, [1, 2, 3, 4, 5]).dense()) < 1e-14


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["up", "down"])
def test_numbers_that_are_not_finite_are_refused(bad: float, part: str) -> None:
    good = {"up": torch.ones(3, 2), "down": torch.ones(2, 4)}
    good[part][-1, -1] = bad
    with pytest.raises(UserError, match=f"The delta of 'client-3': {part} holds NaN or infinity"):
        Delta(**good, name="client-3")


def test_what_is_not_a_delta_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"up must be \(d_out, rank\) and down \(rank, d_in\), not \(3, 2\) and \(3, 4\)"
    ):
        Delta(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(UserError, match="up is torch.int64"):
        Delta(torch.ones(3, 2, dtype=torch.int64), torch.ones(2, 4))
    with pytest.raises(UserError, match="A delta without a name: the scale is nan"):
        Delta(torch.ones(3, 2), torch.ones(2, 4), math.nan)


def test_what_cannot_be_combined_is_refused() -> None:
    one, other = factored(1, 3, 4, 2), factored(2, 3, 5, 2)
    with pytest.raises(UserError, match="The delta of 'client-2' is 3 x 5 and that of 'client-1' 3 x 4"):
        weighted_sum([one, other])
    with pytest.raises(UserError, match="delta of number 1 is 3 x 5 and that of number 0 3 x 4"):
        gram([Delta(one.up, one.down), Delta(other.up, other.down)])
    with pytest.raises(UserError, match="There is no delta"):
        mean([])
    with pytest.raises(UserError, match="1 deltas need 1 finite weights"):
        mean([one], [0.5, 0.5])
    with pytest.raises(UserError, match="must not be negative and not all be zero"):
        mean([one, one], [1, -1])
    with pytest.raises(UserError, match="must not be negative and not all be zero"):
        mean([one, one], [0, 0])


# Gauge ---------------------------------------------------------------------------------------------------------------


def test_signs_do_not_hang_on_rounding() -> None:
    # +1 and -1 up to 1e-12: the first decides, whichever is larger.
    rows = torch.tensor([[1.0, -1 - 1e-12], [-1.0, 1 + 1e-12], [0.5, -1.0]], dtype=torch.float64)
    assert signs(rows).tolist() == [1.0, -1.0, -1.0]
    assert signs(torch.zeros(2, 0)).tolist() == [1.0, 1.0]


@given(several())
def test_canonical_signs_leave_the_delta(deltas: list[Delta]) -> None:
    for delta in deltas:
        fixed = canonical(delta)
        assert torch.equal(fixed.dense(), delta.dense())
        assert torch.equal(signs(fixed.down), torch.ones(delta.rank, dtype=delta.dtype))
        flips = torch.where(torch.arange(delta.rank) % 2 == 0, -1.0, 1.0).to(delta.dtype)
        again = canonical(Delta(delta.up * flips, delta.down * flips[:, None], delta.scale))
        assert torch.equal(again.up, fixed.up)
        assert torch.equal(again.down, fixed.down)


@given(rank=st.integers(1, 5), seed=st.integers(0, 1000))
def test_procrustes_recovers_a_known_rotation(rank: int, seed: int) -> None:
    reference, turn = factored(seed, 6, 8, rank, scale=2.0), orthogonal(rank, seed)
    turned = Delta(reference.up @ turn.T, turn @ reference.down, 2.0)
    assert off(rotation(turned.down, reference.down), turn.T) < 1e-9
    back = align(turned, reference)
    assert off(back.up, reference.up) < 1e-9
    assert off(back.down, reference.down) < 1e-9
    assert drift(turned.down, reference.down) < 1e-12


@given(rank=st.integers(2, 5), seed=st.integers(0, 1000))
def test_no_other_rotation_brings_factors_nearer(rank: int, seed: int) -> None:
    delta, reference = factored(seed, 6, 8, rank, torch.float32), factored(seed + 1, 6, 8, rank, torch.float32)
    aligned = align(delta, reference)
    assert aligned.down.dtype == torch.float32
    assert off(aligned.dense(), truth(delta)) < 1e-5
    best = float((aligned.down - reference.down).norm())
    for other in (torch.eye(rank), *(orthogonal(rank, 7 * seed + i).float() for i in range(5))):
        assert best <= float((other @ delta.down - reference.down).norm()) + 1e-5


def test_drift_by_hand() -> None:
    # The first row has grown from 3 to 6 and the second (4) is gone: the rest is sqrt(3^2 + 4^2) = 5 of 5.
    before = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert drift(torch.tensor([[0.0, 0.0], [-6.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])) == pytest.approx(1.0)
    assert drift(2 * before, before) == pytest.approx(1.0)
    assert drift(torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0
    assert drift(before, torch.zeros(2, 2)) == math.inf
    with pytest.raises(UserError, match=r"between factors of \(2, 2\) and \(3, 2\)"):
        rotation(before, torch.zeros(3, 2))


# Similarity ----------------------------------------------------------------------------------------------------------


@given(several(), several())
def test_cosine_is_that_of_the_dense_deltas(own: list[Delta], other: list[Delta]) -> None:
    pairs = [(one, two) for one, two in zip(own, other, strict=False) if one.shape == two.shape]
    if not pairs:
        pairs = [(own[0], weighted_sum(own))]
    flat = [torch.cat([truth(pair[side]).flatten() for pair in pairs]) for side in (0, 1)]
    expected = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    assert cosine([one for one, _ in pairs], [two for _, two in pairs]) == pytest.approx(expected, abs=1e-9)


def test_cosine_of_factors_depends_on_the_gauge_and_that_of_deltas_does_not() -> None:
    delta, turn = factored(0, 5, 6, 3), orthogonal(3)
    turned = Delta(delta.up @ turn.T, turn @ delta.down)
    assert cosine([delta], [turned]) == pytest.approx(1.0, abs=1e-12)
    assert cosine([delta], [turned], "factors") < 0.9
    assert cosine([delta], [align(turned, delta)], "factors") == pytest.approx(1.0, abs=1e-12)


def test_cosine_by_hand() -> None:
    # Factors (3, 0 | 1, 0) and (0, 3 | 1, 0): products 1, squares 10 each. Dense deltas have no common entry.
    one = Delta(torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    two = Delta(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0, 0.0]]), scale=9.0)
    assert cosine([one], [two], "factors") == pytest.approx(0.1)
    assert cosine([one], [two]) == 0.0
    # Over two modules: (9 + 0) / (sqrt(9 + 9) sqrt(9 + 9 * 81)) = 9 / sqrt(18 * 738)
    assert cosine([one, one], [one, two]) == pytest.approx(9 / math.sqrt(18 * 738))
    zero = Delta(torch.zeros(2, 1), torch.ones(1, 2))
    assert cosine([one], [zero]) == cosine([zero], [zero]) == 0.0
    with pytest.raises(UserError, match="use the space 'delta'"):
        cosine([one], [Delta.from_dense(torch.eye(2))], "factors")
    with pytest.raises(UserError, match="Did you mean 'factors'"):
        cosine([one], [one], "factor")  # type: ignore[arg-type]


def test_leading_directions_by_hand() -> None:
    # Squares 400, 1, 0.25: after one 1.25 is left, after two 0.25; 0.05^2 of the sum is 1.003.
    assert leading(torch.tensor([20.0, 1.0, 0.5])) == 2
    assert leading(torch.tensor([20.0, 1.0, 0.5]), eps=0.1) == 1
    assert leading(torch.tensor([20.0, 1.0, 0.5]), eps=0.0) == 3
    assert leading(torch.zeros(3)) == leading(torch.zeros(0)) == 0
    # 90 % of the norm (81 % of the energy) would be reached after two of these six; 99.75 % of the energy is not.
    assert leading(torch.tensor([6.0, 5.0, 2.0, 1.0, 1.0, 0.1])) == 5
    with pytest.raises(UserError, match=r"must lie in \[0, 1\), not 1"):
        leading(torch.ones(3), eps=1.0)


@pytest.mark.parametrize("count", [1, 7, 400, 401])
def test_equal_values_count_together(count: int) -> None:
    # At 400 the tail 1/400 is exactly eps^2: rounding must not choose.
    assert leading(torch.full((count,), 0.3)) == count
    # A triple at the edge: 10, and three values of which one would do.
    assert leading(torch.tensor([10.0, 0.4, 0.4, 0.4]), eps=0.06) == 4
    assert leading(torch.tensor([10.0, 0.4, 0.4 - 1e-7, 0.3]), eps=0.05, near=1e-6) == 3


def test_alignment_by_hand() -> None:
    merged = Delta.from_dense(torch.diag(torch.tensor([20.0, 2.0, 0.5])))  # squares 400, 4, 0.25: two lead
    client = Delta.from_dense(torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))
    # Rows 1 and 2 of the client hold 5 of its 9: sqrt(5) / 3. The other way round all three lead.
    assert subspace_alignment(client, merged) == pytest.approx(math.sqrt(5) / 3)
    assert subspace_alignment(merged, client) == pytest.approx(1.0)
    assert subspace_alignment(client, svd(merged)) == subspace_alignment(client, merged)
    assert subspace_alignment(client, merged, eps=0.2) == pytest.approx(2 / 3)


@given(several(), st.sampled_from([0.05, 0.3]))
def test_alignment_is_that_of_the_dense_deltas(deltas: list[Delta], eps: float) -> None:
    merged = weighted_sum(deltas)
    u, s, _ = torch.linalg.svd(sum(map(truth, deltas), torch.zeros(1)))
    energy = s.square().flip(0).cumsum(0).flip(0) / s.square().sum()
    if float((energy - eps**2).abs().min()) < 1e-6:
        return  # the count itself would hang on rounding
    lead = u[:, : int((energy > eps**2).sum())]
    for delta in deltas:
        expected = float((lead.T @ truth(delta)).norm() / truth(delta).norm())
        assert subspace_alignment(delta, merged, eps) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_alignment_with_a_flat_spectrum_takes_in_the_whole_space() -> None:
    """Otherwise which 5 of 6 equal directions count would be the routine's choice."""
    left, right = orthogonal(8, 1)[:, :6], orthogonal(8, 2)[:6]
    client = factored(1, 8, 8, 2)
    expected = float((left.T @ truth(client)).norm() / truth(client).norm())
    for seed in range(3):
        noise = 1e-13 * torch.randn(8, 8, generator=torch_rng(seed), dtype=torch.float64)
        merged = Delta.from_dense(left @ right + noise)
        assert subspace_alignment(client, merged, eps=0.5) == pytest.approx(expected, rel=1e-9)


def test_alignment_of_nothing_is_nothing() -> None:
    zero, delta = Delta(torch.zeros(4, 2), torch.ones(2, 3)), factored(0, 4, 3, 2)
    assert subspace_alignment(zero, delta) == subspace_alignment(delta, zero) == subspace_alignment(zero, zero) == 0.0
    with pytest.raises(UserError, match="The delta of 'client-0' is 4 x 3 and the merged one 4 x 5"):
        subspace_alignment(delta, factored(1, 4, 5, 2))
