"""Every merging rule on whole deltas and on factors, against dense float64 formulas written out entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merging_support import (
    NAMES,
    SHAPES,
    WEIGHTS,
    adapters,
    best,
    close,
    cut_up,
    flattened,
    inputs,
    merger,
    reference_emr,
    reference_iso,
    reference_ties,
    reference_trim,
    stacks,
    statistic,
    truncated,
    whole,
)
from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs, Target
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng
from pfl_plugins.dare.rule import mask
from pfl_plugins.merging.operands import Operand

# Spaces `delta`, `weight` ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("space", ["delta", "weight"])
def test_linear_rules(space: str, weights: tuple[float, ...]) -> None:
    found = adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0))
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    for module, stack in stacks(found).items():
        mean = (w * stack).sum(dim=0)
        assert close(whole(merger("flexlora", space=space), inputs(found, weights))[0][module], mean)
        summed = whole(merger("task-arithmetic", space=space, merge_coef=0.3), inputs(found, weights))[0][module]
        assert close(summed, 0.3 * 3 * mean)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("elect", ["total", "count"])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_ties_in_delta_space_is_flat(weights: tuple[float, ...], reduce: str, elect: str, density: float) -> None:
    found = adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0))
    dense = stacks(found)
    trimmed = reference_trim(flattened(dense), density)
    expected = cut_up(reference_ties(trimmed, weights, reduce, elect), dense)
    rule = merger("ties", density=density, reduce=reduce, elect=elect, merge_coef=0.7)
    result = whole(rule, inputs(found, weights))[0]
    assert all(close(result[module], 0.7 * expected[module]) for module in dense)


@pytest.mark.parametrize("scope", ["per_module", "per_tensor"])
def test_ties_trimmed_module_by_module(scope: str) -> None:
    found = adapters()
    result = whole(merger("ties", density=0.3, trim_scope=scope), inputs(found))[0]
    for module, stack in stacks(found).items():
        expected = reference_ties(reference_trim(stack.flatten(1), 0.3), WEIGHTS[0])
        assert close(result[module].flatten(), expected)


def test_a_module_of_small_updates_loses_all_to_a_flat_trim() -> None:
    found = adapters()
    small = [{**one, "g/one": Delta(one["g/one"].up * 1e-4, one["g/one"].down, 2.0)} for one in found]
    assert not whole(merger("ties", density=0.2), inputs(small))[0]["g/one"].any()
    assert whole(merger("ties", density=0.2, trim_scope="per_module"), inputs(small))[0]["g/one"].any()


def test_iso_c_has_one_value_on_all_directions_of_the_sum() -> None:
    found = adapters(ranks=(1, 1, 2))
    result = whole(merger("iso-c", merge_coef=0.5), inputs(found))[0]
    for module, stack in stacks(found).items():
        assert close(result[module], 0.5 * reference_iso(stack.sum(dim=0)))
    by_default = whole(merger("iso-c"), inputs(found))[0]
    assert close(by_default["g/one"], reference_iso(stacks(found)["g/one"].mean(dim=0)))  # alpha = 1 / K


def test_iso_c_average_over_the_smaller_side_as_published() -> None:
    found = adapters(ranks=(1, 1, 1))  # rank 3 in modules of smaller side 6 and 5
    by_rank, by_side = (whole(merger("iso-c", iso_average=how), inputs(found))[0] for how in ("rank", "min_dim"))
    assert close(by_side["g/one"], by_rank["g/one"] * 3 / 6)
    assert close(by_side["g/two"], by_rank["g/two"] * 3 / 5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("then", ["mean", "task-arithmetic"])
def test_dare_drops_rescales_and_merges(weights: tuple[float, ...], then: str) -> None:
    found = adapters()
    rule = merger("dare", drop_rate=0.4, then=then, merge_coef=1.0)
    result = whole(rule, inputs(found, weights))[0]
    for module, stack in stacks(found).items():
        expected = torch.zeros_like(stack[0])
        for k, name in enumerate(NAMES):
            operand = Operand(module, "", 0, tuple(one[module] for one in found))
            place = (slice(0, stack.shape[1]), slice(0, stack.shape[2]))
            kept = mask(operand, 0.4, place, lambda tile, n=name, m=module: torch_rng(7, "drop", n, m, tile))
            expected += weights[k] * (1 if then == "mean" else 3) * kept.double() * stack[k] / 0.6
        assert close(result[module], expected)


def test_dare_without_drops_is_what_comes_after_it() -> None:
    given_ = inputs(adapters())
    assert close(whole(merger("dare", drop_rate=0), given_)[0]["g/one"], whole(merger("flexlora"), given_)[0]["g/one"])
    ties = whole(merger("ties", density=0.5), given_)[0]["g/one"]
    assert close(whole(merger("dare-ties", drop_rate=0, density=0.5), given_)[0]["g/one"], ties)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rescaler", ["global", "tensor_mean"])
@pytest.mark.parametrize("space", ["delta", "weight"])
def test_emr_is_personal(space: str, rescaler: str, weights: tuple[float, ...]) -> None:
    found = adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0))
    dense = stacks(found)
    flat = flattened(dense)
    united, masks = reference_emr(flat, weights)
    results = whole(merger("emr", rescaler=rescaler, space=space), inputs(found, weights))
    for k, result in enumerate(results):
        parts = [part[k].numel() for part in dense.values()]
        own = [part.abs().sum() for part in flat[k].split(parts)]
        kept = [part.abs().sum() for part in (masks[k] * united).split(parts)]
        if rescaler == "tensor_mean":
            own, kept = ([x / n for x, n in zip(side, parts, strict=True)] for side in (own, kept))
        expected = cut_up(sum(own) / sum(kept) * masks[k] * united, dense)
        assert all(close(result[module], expected[module]) for module in dense)


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("space", ["delta", "weight"])
def test_regmean(space: str, a: float) -> None:
    found = adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0))
    weights = (0.5, 0.3, 0.2)
    result = whole(merger("regmean", a=a, ridge=1e-3, space=space), inputs(found, weights))[0]
    for module, stack in stacks(found).items():
        grams = [statistic("gram", name, module) for name in NAMES]
        level = 1e-3 * sum(w * float(g.diagonal().mean()) for w, g in zip(weights, grams, strict=True))
        shrunk = [
            a * g + (1 - a) * torch.diag(g.diagonal()) + level * torch.eye(len(g), dtype=torch.float64) for g in grams
        ]
        top = sum(w * d @ g for w, d, g in zip(weights, stack, shrunk, strict=True))
        expected = top @ torch.linalg.inv(sum(w * g for w, g in zip(weights, shrunk, strict=True)))
        assert close(result[module], expected)


@pytest.mark.parametrize("normalize", ["model", "param", "none"])
@pytest.mark.parametrize("space", ["ab", "delta", "weight"])
def test_fisher(space: str, normalize: str) -> None:
    found, weights = adapters(), (0.5, 0.3, 0.2)
    parts = ("A", "B") if space == "ab" else ("W",)
    own = {(m, p): torch.stack([statistic(f"fisher/{p}", n, m) for n in NAMES]) for m in sorted(SHAPES) for p in parts}
    if normalize == "model":
        norms = torch.cat([value.flatten(1) for value in own.values()], dim=1).norm(dim=1)
        own = {key: value / norms[:, None, None] for key, value in own.items()}
    if normalize == "param":
        own = {key: value / value.flatten(1).norm(dim=1)[:, None, None] for key, value in own.items()}
    mean = torch.cat([value.flatten() for value in own.values()]).mean()
    result = whole(merger("fisher", normalize=normalize, floor=0.5, space=space), inputs(found, weights))[0]
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    for module in SHAPES:
        merged = {}
        for part in parts:
            info = own[module, part]
            info = info.clamp_min(0.5 * float(info.mean() if normalize == "param" else mean))
            deltas = [one[module] for one in found]
            stack = {"A": [d.down for d in deltas], "B": [d.up for d in deltas], "W": [d.dense() for d in deltas]}[part]
            merged[part] = (w * info * torch.stack(stack)).sum(dim=0) / (w * info).sum(dim=0)
        expected = 2.0 * merged["B"] @ merged["A"] if space == "ab" else merged["W"]
        assert close(result[module], expected)


# Space `ab` -----------------------------------------------------------------------------------------------------------


def factor_stacks(found: Sequence[dict[str, Delta]], module: str) -> tuple[Tensor, Tensor]:
    return torch.stack([one[module].down for one in found]), torch.stack([one[module].up for one in found])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_factors_are_merged_apart_and_the_coefficient_goes_into_one(weights: tuple[float, ...]) -> None:
    found = adapters()
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    for module in SHAPES:
        down, up = ((w * stack).sum(dim=0) for stack in factor_stacks(found, module))
        given_ = inputs(found, weights)
        assert close(whole(merger("flexlora", space="ab"), given_)[0][module], 2.0 * up @ down)
        # A sum of both factors would grow by K^2, and a coefficient in both would count twice.
        summed = whole(merger("task-arithmetic", space="ab", merge_coef=0.5), given_)[0][module]
        assert close(summed, 0.5 * 3 * 2.0 * up @ down)


def test_mean_of_factors_is_not_the_mean_of_deltas() -> None:
    given_ = inputs(adapters())
    apart, exact = (whole(merger("flexlora", space=space), given_)[0]["g/one"] for space in ("ab", "delta"))
    assert not close(apart, exact, 0.1)


def test_ties_iso_c_emr_and_regmean_on_factors() -> None:
    found = adapters()
    given_ = inputs(found)
    results = {name: whole(merger(name, space="ab"), given_) for name in ("ties", "iso-c", "emr", "regmean")}
    flats = {part: [] for part in "AB"}
    for module in sorted(SHAPES):
        down, up = factor_stacks(found, module)
        ties = [reference_ties(reference_trim(f.flatten(1), 0.2), WEIGHTS[0]).view(f.shape[1:]) for f in (down, up)]
        assert close(results["ties"][0][module], 2.0 * ties[1] @ ties[0])
        iso = [reference_iso(f.mean(dim=0)) for f in (down, up)]
        assert close(results["iso-c"][0][module], 2.0 * iso[1] @ iso[0])
        grams = [statistic("gram", name, module) for name in NAMES]
        inner = [a @ g @ a.T for a, g in zip(down, grams, strict=True)]
        parts = []
        for stack, gram in ((down, grams), (up, inner)):
            level = 1e-6 * sum(float(g.diagonal().mean()) for g in gram) / 3
            shrunk = [
                0.9 * g + 0.1 * torch.diag(g.diagonal()) + level * torch.eye(len(g), dtype=torch.float64) for g in gram
            ]
            parts.append(sum(t @ g for t, g in zip(stack, shrunk, strict=True)) @ torch.linalg.inv(sum(shrunk)))
        assert close(results["regmean"][0][module], 2.0 * parts[1] @ parts[0])
        flats["A"].append(down.flatten(1))
        flats["B"].append(up.flatten(1))
    for k in range(3):
        factors = {}
        for part, flat in flats.items():
            joined = torch.cat(flat, dim=1)
            united, masks = reference_emr(joined, WEIGHTS[0])
            scaled = joined[k].abs().sum() / (masks[k] * united).abs().sum() * masks[k] * united
            factors[part] = scaled.split([one.shape[1] for one in flat])
        for number, module in enumerate(sorted(SHAPES)):
            d_out, d_in = SHAPES[module]
            up, down = factors["B"][number].view(d_out, 2), factors["A"][number].view(2, d_in)
            assert close(results["emr"][k][module], 2.0 * up @ down)


def test_a_flat_trim_over_both_factors_wipes_the_smaller_one() -> None:
    # After a few local steps B is orders of magnitude below A.
    found = [{m: Delta(d.up * 1e-3, d.down, 2.0) for m, d in one.items()} for one in adapters()]
    for module in SHAPES:
        assert not whole(merger("ties", space="ab", trim_scope="flat"), inputs(found))[0][module].any()
        assert not whole(merger("ties", space="ab", trim_scope="per_module"), inputs(found))[0][module].any()
        assert whole(merger("ties", space="ab"), inputs(found))[0][module].any()  # each A and each B on its own


def test_factors_need_one_rank_and_one_scale() -> None:
    for differing, clause in (
        ({"ranks": (2, 3, 2)}, "one rank.*'ann' is 2 and that of 'bob' 3"),
        ({"scales": (2.0, 2.0, 4.0)}, "one scale.*'cyd' 4"),
    ):
        with pytest.raises(UserError, match=clause):
            whole(merger("ties", space="ab"), inputs(adapters(**differing)))  # type: ignore[arg-type]


def test_merged_factors_go_into_an_adapter_of_another_scale_or_rank() -> None:
    given_ = inputs(adapters())
    rule = merger("task-arithmetic", space="ab", merge_coef=0.5)
    expected = whole(rule, given_)[0]
    for target in (Target(2, 2.0), Target(2, 0.5), Target(1, 0.5), Target(4, 8.0)):
        for module, merged in truncated(rule, given_, target).items():
            delta = merged.deltas[0]
            assert isinstance(delta, Delta)
            assert (delta.rank, delta.scale) == (target.rank, target.scale)
            assert close(delta.dense(), best(expected[module], target.rank))
    same = truncated(rule, given_, Target(2, 2.0))["g/one"].deltas[0]
    assert isinstance(same, Delta)
    assert close(same.down, factor_stacks(adapters(), "g/one")[0].mean(dim=0))  # A itself, not a rotation of it


def test_factors_that_moved_since_the_last_reply() -> None:
    found = adapters()
    start = adapters(seed=5)[0]
    given_ = inputs(found)
    moved = Inputs(given_.names, given_.modules, given_.weights, given_.read, given_.rng, reference=start.__getitem__)
    result = whole(merger("ties", space="ab", density=0.5, ab_reference="previous_global"), moved)[0]
    for module in SHAPES:
        down, up = factor_stacks(found, module)
        parts = []
        for stack, origin in ((down, start[module].down), (up, start[module].up)):
            trimmed = reference_trim((stack - origin).flatten(1), 0.5)
            parts.append(origin + reference_ties(trimmed, WEIGHTS[0]).view(origin.shape))
        assert close(result[module], 2.0 * parts[1] @ parts[0])
