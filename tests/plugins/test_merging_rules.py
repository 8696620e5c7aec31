"""The merging rules with numbers to redo by hand, exact thresholds over many matrices, and leading directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging_support import inputs, merger
from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Target
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng
from pfl_plugins.dare.rule import drop_and_rescale, mask
from pfl_plugins.emr.rule import elect, masked
from pfl_plugins.fisher.rule import fisher_mean
from pfl_plugins.isoc.rule import iso_c
from pfl_plugins.merging import thresholds
from pfl_plugins.merging.krylov import leading_svd
from pfl_plugins.merging.operands import Operand
from pfl_plugins.merging.outcomes import Entries, Refit
from pfl_plugins.merging.thresholds import Cut, cuts, survivors
from pfl_plugins.regmean.rule import regmean
from pfl_plugins.ties.rule import disjoint_merge, trim


def rows(*values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


UNIFORM = (0.25, 0.25, 0.25, 0.25)

# TIES -----------------------------------------------------------------------------------------------------------------


def test_signs_are_elected_by_mass_or_by_count() -> None:
    stack = rows([5.0], [-1.0], [-2.0], [-1.5])
    assert disjoint_merge(stack, UNIFORM).item() == 5.0  # 5 against 4.5
    assert disjoint_merge(stack, UNIFORM, elect="count").item() == -1.5  # one against three


def test_zeros_neither_vote_nor_count() -> None:
    stack = rows([6.0], [0.0], [2.0], [0.0])
    assert disjoint_merge(stack, UNIFORM).item() == 4.0  # not 8 / 4
    assert disjoint_merge(stack, UNIFORM, reduce="sum").item() == 8.0
    assert disjoint_merge(stack, UNIFORM, reduce="sum", averaged=True).item() == 2.0
    assert disjoint_merge(torch.zeros(4, 3), UNIFORM).tolist() == [0.0, 0.0, 0.0]


def test_what_cancels_exactly_elects_plus() -> None:
    stack = rows([1.0, -1.0], [2.0, -2.0], [-3.0, 3.0])
    for weights in ((1 / 3,) * 3, (0.1, 0.1, 0.1)):
        assert disjoint_merge(stack, weights).tolist() == [1.5, 3.0]


def test_weights_enter_the_election_and_the_mean() -> None:
    stack = rows([4.0], [2.0], [-3.0])
    # 0.1 * 4 + 0.2 * 2 - 0.7 * 3 < 0
    assert disjoint_merge(stack, (0.1, 0.2, 0.7)).item() == pytest.approx(-3.0)
    # 0.2 * 4 + 0.6 * 2 - 0.2 * 3 > 0: (0.2 * 4 + 0.6 * 2) / 0.8
    assert disjoint_merge(stack, (0.2, 0.6, 0.2)).item() == pytest.approx(2.5)
    assert disjoint_merge(stack, (2.0, 6.0, 2.0)).item() == pytest.approx(2.5)  # whatever their scale


@pytest.mark.parametrize(("density", "kept"), [(0.2, 2), (0.29, 2), (0.01, 1), (0.999, 9), (1.0, 10)])
def test_exactly_so_many_survive(density: float, kept: int) -> None:
    assert survivors(density, 10) == kept
    stack = torch.randn(3, 2, 5, generator=torch_rng("trim", kept))
    assert (trim(stack, density) != 0).flatten(1).sum(dim=1).tolist() == [kept] * 3
    same = torch.ones(1, 10)  # all are equal: the published code keeps all of these
    assert trim(same, density).nonzero()[:, 1].tolist() == list(range(kept))


# DARE -----------------------------------------------------------------------------------------------------------------


def operand(
    *shape: int, rank: int = 2, clients: int = 2, dtype: torch.dtype = torch.float64, index: int = 0
) -> Operand:
    rng = torch_rng("operand", *shape, index)
    deltas = [
        Delta(
            torch.randn(shape[0], rank, generator=rng).to(dtype), torch.randn(rank, shape[1], generator=rng).to(dtype)
        )
        for _ in range(clients)
    ]
    return Operand(f"m{index}", "", index, tuple(deltas))


def test_mean_and_variance_of_what_dare_makes() -> None:
    big, rate = operand(400, 300), 0.75
    keep = mask(big, rate, (slice(0, 400), slice(0, 300)), lambda tile: torch_rng("dare", tile))
    out = drop_and_rescale(torch.full((400, 300), 2.0), keep, rate)
    assert sorted(set(out.flatten().tolist())) == [0.0, 8.0]
    # E = 2, Var = 2^2 q / (1 - q) = 12; the mean of 120,000 draws has a standard deviation of 0.01
    assert abs(float(out.mean()) - 2.0) < 0.04
    assert abs(float(out.var()) - 12.0) < 0.2


@pytest.mark.parametrize("shape", [(70, 40), (40, 70), (3, 90000)])
def test_a_mask_is_the_same_in_whatever_blocks_it_is_asked_for(shape: tuple[int, int]) -> None:
    one = operand(*shape)

    def part(first: slice, second: slice) -> Tensor:
        return mask(one, 0.5, (first, second), lambda tile: torch_rng("tile", tile))

    every = part(slice(0, shape[0]), slice(0, shape[1]))
    assert torch.equal(part(slice(1, 3), slice(5, 17)), every[1:3, 5:17])
    assert torch.equal(part(slice(2, shape[0]), slice(30, shape[1])), every[2:, 30:])
    assert 0.3 < every.double().mean() < 0.7


# EMR, Fisher, Iso-C, RegMean ------------------------------------------------------------------------------------------


def test_emr_by_hand() -> None:
    stack = rows([3.0, -1.0, 0.5, 0.0], [1.0, -4.0, -0.5, 0.0], [-2.0, 2.0, 0.0, 0.0])
    unified = elect(stack, (1 / 3,) * 3)
    assert unified.tolist() == [3.0, -4.0, 0.5, 0.0]
    assert [masked(own, unified).tolist() for own in stack] == [
        [3.0, -4.0, 0.5, 0.0],
        [3.0, -4.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]


def test_emr_says_whose_entries_a_client_got() -> None:
    """The stack of the test above: 3 and 0.5 are elected from the first, -4 from the second; the third has nothing
    left, and a fourth that is like the first shares its entries with it."""
    up = torch.ones(1, 1, dtype=torch.float64)
    found = [
        {"g/one": Delta(up, torch.tensor([row], dtype=torch.float64), 1.0, "")}
        for row in ([3.0, -1.0, 0.5, 0.0], [1.0, -4.0, -0.5, 0.0], [-2.0, 2.0, 0.0, 0.0])
    ]
    (merged,) = merger("emr", space="delta").merge(inputs(found), [None] * 3)
    for row, expected in zip(merged.shares, [(3.5 / 7.5, 4 / 7.5, 0), (3 / 7, 4 / 7, 0), (0, 0, 1)], strict=True):
        assert row == pytest.approx(expected)
    twice = [found[0], found[1], found[0]]
    (merged,) = merger("emr", space="delta").merge(inputs(twice), [None] * 3)
    assert merged.shares[0] == merged.shares[2] == pytest.approx((3.5 / 11, 4 / 11, 3.5 / 11))


def test_fisher_of_nothing_is_the_weighted_mean() -> None:
    stack, nothing = rows([1.0], [5.0]), torch.zeros(2, 1, dtype=torch.float64)
    assert fisher_mean(stack, nothing, (0.75, 0.25)).item() == pytest.approx(2.0)
    assert fisher_mean(stack, nothing, (0.75, 0.25), floor=1e-6).item() == pytest.approx(2.0)
    # A floor for the first client only, as published, would give that client's value.
    assert fisher_mean(stack, rows([1e-12], [0.0]), (0.5, 0.5), floor=1e-6).item() == pytest.approx(3.0)
    assert fisher_mean(stack, rows([1e-12], [0.0]), (0.5, 0.5)).item() == 1.0


def test_fisher_by_hand() -> None:
    # 0.5 * 2 * 1 + 0.5 * 6 * 5 over 0.5 * 2 + 0.5 * 6
    assert fisher_mean(rows([1.0], [5.0]), rows([2.0], [6.0]), (0.5, 0.5)).item() == 4.0


def test_iso_c_of_a_diagonal_and_of_zero() -> None:
    assert torch.allclose(iso_c(rows([0.0, 3.0], [-1.0, 0.0])), rows([0.0, 2.0], [-2.0, 0.0]))
    low = rows([4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert torch.allclose(iso_c(low), low)  # its rank is 1, and the other two directions stay empty
    assert torch.allclose(iso_c(low, "min_dim"), low / 3)
    assert not iso_c(torch.zeros(2, 3, dtype=torch.float64)).any()


def test_regmean_by_hand() -> None:
    # Inputs e1 at one client and e2 at the other: each gives the column that its data know.
    stack = torch.stack([rows([1.0, 2.0], [3.0, 4.0]), rows([5.0, 6.0], [7.0, 8.0])])
    grams = torch.stack([torch.diag(rows([1.0, 0.0])[0]), torch.diag(rows([0.0, 1.0])[0])])
    merged = regmean(stack, grams, (0.5, 0.5), ridge=0.0)
    assert torch.allclose(merged, rows([1.0, 6.0], [3.0, 8.0]))
    # Directions without inputs are merged by the weighted mean.
    merged = regmean(stack, torch.zeros(2, 2, 2, dtype=torch.float64), (0.25, 0.75))
    assert torch.allclose(merged, 0.25 * stack[0] + 0.75 * stack[1])
    one = torch.stack([torch.diag(rows([1.0, 0.0])[0])] * 2)
    assert torch.allclose(regmean(stack, one, (0.5, 0.5))[:, 1], stack.mean(dim=0)[:, 1])
    with pytest.raises(UserError, match="singular, so RegMean has no solution"):
        regmean(stack, one, (0.5, 0.5), ridge=0.0)
    with pytest.raises(UserError, match="An input feature is zero at every client"):
        regmean(stack, one.diagonal(dim1=1, dim2=2), (0.5, 0.5), ridge=0.0)


def test_off_diagonals_are_multiplied_by_a() -> None:
    stack = torch.randn(2, 2, 2, generator=torch_rng("a"), dtype=torch.float64)
    grams = torch.stack([rows([2.0, 1.0], [1.0, 3.0]), rows([1.0, -0.5], [-0.5, 4.0])])
    diagonals = torch.stack([gram.diagonal() for gram in grams])
    by_a = regmean(stack, grams, (0.5, 0.5), a=0.0, ridge=0.0)
    assert torch.allclose(by_a, regmean(stack, diagonals, (0.5, 0.5), ridge=0.0))
    plain = sum(w @ g for w, g in zip(stack, grams, strict=True)) @ torch.linalg.inv(grams.sum(dim=0))
    assert torch.allclose(regmean(stack, grams, (0.5, 0.5), a=1.0, ridge=0.0), torch.as_tensor(plain))


# Exact thresholds -----------------------------------------------------------------------------------------------------


def kept(operands: Sequence[Operand], found: Sequence[Cut]) -> list[Tensor]:
    """What survives of each client, over all operands flattened row by row."""
    out: list[list[Tensor]] = [[] for _ in found]
    for one in operands:
        for k, cut in enumerate(found):
            whole = torch.zeros(one.shape, dtype=one.dtype)
            for place, block in one.blocks():
                whole[place] = cut.trim(block[k], one.index, place)
            out[k].append(whole.flatten())
    return [torch.cat(parts) for parts in out]


def search(operands: Sequence[Operand], density: float) -> list[Cut]:
    def group() -> Iterable[Operand]:
        return operands

    return cuts(group, density, lambda k: torch_rng("sample", k))


def expected(operands: Sequence[Operand], k: int, density: float) -> Tensor:
    dense = torch.cat([torch.cat([b[k].flatten() for _, b in walked(one)]) for one in operands])
    return trim(dense[None], density)[0]


def walked(one: Operand) -> Iterable[tuple[object, Tensor]]:
    whole = torch.zeros(len(one), *one.shape, dtype=one.dtype)
    for place, block in one.blocks():
        whole[:, place[0], place[1]] = block
    return [(None, whole)]


@pytest.mark.parametrize("way", ["at once", "sample", "misled", "bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.003, 0.2, 0.9])
def test_thresholds_are_exact_however_they_are_found(
    way: str, dtype: torch.dtype, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = [operand(30, 20, dtype=dtype, index=0), operand(15, 40, dtype=dtype, index=1)]
    if way != "at once":
        monkeypatch.setattr(thresholds, "_COLLECT", 100)
        monkeypatch.setattr(thresholds, "_SAMPLE", 400)
    if way == "misled":  # a sample of one client's scale only
        monkeypatch.setattr(thresholds.math, "sqrt", lambda _: -1e-3)
    if way == "bits":
        monkeypatch.setattr(thresholds, "_guess", lambda *_: None)
    survived = kept(operands, search(operands, density))
    for k, found in enumerate(survived):
        assert int((found != 0).sum()) == int(density * 1200)
        assert torch.equal(found, expected(operands, k, density))


@pytest.mark.parametrize("collect", [100, 2**21])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.77])
def test_equal_magnitudes_are_told_apart_by_position(
    collect: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "_COLLECT", collect)
    monkeypatch.setattr("pfl_plugins.merging.operands.BUDGET", 500)
    rng = torch_rng("ties")
    operands = []
    for index, shape in enumerate([(12, 9), (7, 20)]):
        deltas = [Delta.from_dense(torch.randint(-2, 3, shape, generator=rng).double()) for _ in range(2)]
        operands.append(Operand(f"m{index}", "", index, tuple(deltas)))
    for k, found in enumerate(kept(operands, search(operands, density))):
        assert torch.equal(found, expected(operands, k, density))


def test_a_client_of_zeros_loses_nothing_and_harms_nobody() -> None:
    one = operand(6, 5)
    zero = Delta(torch.zeros_like(one.deltas[0].up), one.deltas[0].down)
    both = Operand("m", "", 0, (zero, one.deltas[1]))
    found = kept([both], search([both], 0.4))
    assert not found[0].any()
    assert int((found[1] != 0).sum()) == 12


@settings(max_examples=30)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40), percent=st.integers(1, 99))
def test_thresholds_of_small_integers(values: list[int], percent: int) -> None:
    one = Operand("m", "", 0, (Delta.from_dense(torch.tensor([values], dtype=torch.float64)),))
    found = kept([one], search([one], percent / 100))[0]
    assert torch.equal(found, trim(torch.tensor([values], dtype=torch.float64), percent / 100)[0])


# Leading directions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 400), (500, 280)])
def test_leading_directions_are_those_of_the_whole_svd(shape: tuple[int, int]) -> None:
    noise = torch.randn(shape, generator=torch_rng("noise", *shape), dtype=torch.float64)
    matrix = noise * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    found = leading_svd(matrix, 5, torch.float64)
    assert found is not None
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(found.s, s[:5], rtol=1e-12)
    assert torch.allclose((found.u * found.s) @ found.vt, (u[:, :5] * s[:5]) @ vt[:5], atol=1e-7)


@pytest.mark.parametrize("guess", ["good", "of a few", "of too many", "bad", "nothing"])
def test_a_guess_of_the_leading_directions_changes_nothing_but_the_time(guess: str) -> None:
    matrix = torch.randn(300, 400, generator=torch_rng("guess"), dtype=torch.float64)
    matrix *= torch.logspace(0, -3, 400, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    near = {"good": vt[:5], "of a few": vt[1:3], "of too many": vt[:40], "bad": vt[-5:], "nothing": torch.zeros(5, 400)}
    found = leading_svd(matrix, 5, torch.float64, near[guess])
    assert found is not None
    assert torch.allclose(found.s, s[:5], rtol=1e-12)
    assert torch.allclose((found.u * found.s) @ found.vt, (u[:, :5] * s[:5]) @ vt[:5], atol=1e-7)


def test_leading_directions_give_up_rather_than_guess() -> None:
    assert leading_svd(torch.ones(100, 100), 3, torch.float32) is None  # small: not worth it
    assert leading_svd(torch.ones(300, 300), 40, torch.float32) is None  # too many
    assert leading_svd(torch.zeros(300, 300), 2, torch.float32) is None  # nothing there
    noise = torch.randn(400, 400, generator=torch_rng("noise"), dtype=torch.float64)
    assert leading_svd(noise, 20, torch.float64) is None  # not converged in half of the dimensions


@pytest.mark.parametrize("quick", [True, False])
def test_large_results_are_truncated_as_well_with_leading_directions_as_without(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = operand(300, 280, rank=4)
    if not quick:
        monkeypatch.setattr("pfl_plugins.merging.outcomes.leading_svd", lambda *_: None)
    outcome = Entries(big, lambda block, _: disjoint_merge(block, (0.5, 0.5)))
    dense = disjoint_merge(big.stack(), (0.5, 0.5))
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    fit = outcome.fit([Target(3, 0.5)], Refit(1.0, "left", 0))[0]
    assert isinstance(fit.delta, Delta)
    assert torch.allclose(fit.delta.dense(), (u[:, :3] * s[:3]) @ vt[:3], atol=1e-7)
    assert fit.measures.error == pytest.approx(float(s[3:].norm() / s.norm()), rel=1e-9)
    assert fit.measures.norm == pytest.approx(float(s.norm()))
