"""Every merging rule, in every space where it is defined, against dense float64 formulas written out here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs, Merged, Target
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_plugins.dare.rule import mask
from pfl_plugins.merging.merger import SpaceMerger
from pfl_plugins.merging.operands import Operand

SHAPES = {"g/one": (6, 9), "g/two": (8, 5)}
NAMES = ("ann", "bob", "cyd")
ALL = ["flexlora", "task-arithmetic", "ties", "dare", "dare-ties", "iso-c", "knots", "regmean", "fisher", "emr"]
manager = PluginManager()


def merger(method: str, **options: Any) -> SpaceMerger:
    found = manager.make("aggregator", method, options).merger
    assert isinstance(found, SpaceMerger)
    return found


def adapters(
    seed: int = 0, count: int = 3, ranks: Sequence[int] = (2, 2, 2), scales: Sequence[float] = (2.0, 2.0, 2.0)
) -> list[dict[str, Delta]]:
    rng = torch_rng("adapters", seed)
    return [
        {
            module: Delta(
                torch.randn(d_out, ranks[k], generator=rng, dtype=torch.float64),
                torch.randn(ranks[k], d_in, generator=rng, dtype=torch.float64),
                scales[k],
                NAMES[k],
            )
            for module, (d_out, d_in) in SHAPES.items()
        }
        for k in range(count)
    ]


def statistic(name: str, who: str, module: str, rank: int = 2) -> Tensor:
    """Gram matrices and Fisher information, addressed by the adapter's name."""
    rng = torch_rng("statistic", name, who, module)
    d_out, d_in = SHAPES[module]
    if name == "gram":
        x = torch.randn(4, d_in, generator=rng, dtype=torch.float64)  # fewer tokens than features
        return x.T @ x / 4
    shape = {"A": (rank, d_in), "B": (d_out, rank), "W": (d_out, d_in)}[name[-1]]
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def inputs(
    found: Sequence[dict[str, Delta]], weights: Sequence[float] | None = None, names: Sequence[str] = NAMES
) -> Inputs:
    count = len(found)
    return Inputs(
        names=tuple(names[:count]),
        modules=tuple(sorted(found[0])),
        weights=tuple(weights or [1 / count] * count),
        read=lambda k, module: found[k][module],
        rng=lambda *parts: torch_rng(7, *parts),
        statistic=lambda name, k, module: statistic(name, names[k], module),
    )


def whole(rule: SpaceMerger, given_: Inputs) -> list[dict[str, Tensor]]:
    """The results without truncation, dense float64: one per target."""
    targets = [None] * (len(given_) if rule.personal else 1)
    results: list[dict[str, Tensor]] = [{} for _ in targets]
    for merged in rule.merge(given_, targets):
        for result, delta in zip(results, merged.deltas, strict=True):
            result[merged.module] = delta.dense(torch.float64) if isinstance(delta, Delta) else delta.double()
    return results


def truncated(rule: SpaceMerger, given_: Inputs, target: Target) -> dict[str, Merged]:
    return {merged.module: merged for merged in rule.merge(given_, [target])}


def stacks(found: Sequence[dict[str, Delta]]) -> dict[str, Tensor]:
    return {module: torch.stack([one[module].dense(torch.float64) for one in found]) for module in sorted(found[0])}


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    size = max(float(other.abs().max()), 1e-300)
    return float((one.double() - other.double()).abs().max()) <= tolerance * size


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


# The formulas, dense and entry by entry -------------------------------------------------------------------------------


def reference_trim(flat: Tensor, density: float) -> Tensor:
    """Rows trimmed to int(density P) entries of largest magnitude, the first among equal ones."""
    out = torch.zeros_like(flat)
    keep = flat.shape[1] if density >= 1 else max(1, int(density * flat.shape[1]))
    for k, row in enumerate(flat.tolist()):
        for j in sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[:keep]:
            out[k, j] = row[j]
    return out


def reference_ties(flat: Tensor, weights: Sequence[float], reduce: str = "mean", elect: str = "total") -> Tensor:
    out = []
    for column in flat.T.tolist():
        counted = [t if elect == "total" else float(t > 0) - float(t < 0) for t in column]
        votes = [w * t for w, t in zip(weights, counted, strict=True)]
        sign = 1 if math.fsum(votes) >= -1e-15 else -1
        agreeing = [(w, t) for w, t in zip(weights, column, strict=True) if t * sign > 0]
        total = sum(w * t for w, t in agreeing)
        if reduce == "sum":
            out.append(len(weights) * total)
        else:
            out.append(total / sum(w for w, _ in agreeing) if agreeing else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def reference_iso(matrix: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    return s[:rank].mean() * u[:, :rank] @ vt[:rank]


def reference_emr(flats: Tensor, weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """T_uni and M_k of rows (K, P)."""
    unified = []
    for column in flats.T.tolist():
        sign = 1 if sum(w * t for w, t in zip(weights, column, strict=True)) >= 0 else -1
        unified.append(sign * max([abs(t) for t in column if t * sign > 0], default=0.0))
    united = torch.tensor(unified, dtype=torch.float64)
    return united, [(row * united > 0).double() for row in flats]


def flattened(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[module].flatten(1) for module in sorted(found)], dim=1)


def cut_up(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([like[module][0].numel() for module in sorted(like)])
    return {m: part.view(like[m][0].shape) for m, part in zip(sorted(like), parts, strict=True)}


def coordinates(found: Sequence[dict[str, Delta]], target: str, axis: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """U, S and the stack of coordinates of every module, from the dense concatenation."""
    bases, blocks = {}, {}
    for module, stack in stacks(found).items():
        turned = stack if axis == "input_concat" else stack.transpose(1, 2)
        u, s, vt = torch.linalg.svd(torch.cat(list(turned), dim=1), full_matrices=False)
        rank = int((s > 1e-10 * s[0]).sum())
        signs = torch.sign(u[:, :rank].gather(0, u[:, :rank].abs().argmax(dim=0, keepdim=True)).squeeze(0))
        bases[module] = (u[:, :rank] * signs, s[:rank])
        parts = (vt[:rank] * signs[:, None]).split(turned.shape[2], dim=1)
        blocks[module] = torch.stack([part if target == "v" else s[:rank, None] * part for part in parts])
    return bases, blocks


def lifted(bases: dict[str, Any], merged: dict[str, Tensor], target: str, axis: str) -> dict[str, Tensor]:
    out = {}
    for module, (u, s) in bases.items():
        dense = (u * s if target == "v" else u) @ merged[module]
        out[module] = dense if axis == "input_concat" else dense.T
    return out


WEIGHTS = [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)]


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


# Space `knots` --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["input_concat", "output_concat"])
@pytest.mark.parametrize("target", ["v", "sv"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_in_coordinates(target: str, axis: str, weights: tuple[float, ...]) -> None:
    found = adapters(ranks=(1, 2, 1), scales=(0.5, 2.0, 4.0))
    bases, blocks = coordinates(found, target, axis)
    merged = cut_up(reference_ties(reference_trim(flattened(blocks), 0.4), weights), blocks)
    expected = lifted(bases, merged, target, axis)
    rule = merger("knots-ties", density=0.4, knots_target=target, knots_axis=axis)
    result = whole(rule, inputs(found, weights))[0]
    assert all(close(result[module], expected[module]) for module in SHAPES)


@pytest.mark.parametrize("axis", ["input_concat", "output_concat"])
def test_iso_c_in_coordinates(axis: str) -> None:
    found = adapters(ranks=(1, 2, 1))
    bases, blocks = coordinates(found, "v", axis)
    expected = lifted(bases, {m: reference_iso(b.mean(dim=0)) for m, b in blocks.items()}, "v", axis)
    result = whole(merger("knots-iso-c", knots_axis=axis), inputs(found))[0]
    assert all(close(result[module], expected[module]) for module in SHAPES)


def test_iso_c_in_coordinates_has_the_spectrum_of_the_concatenation() -> None:
    found = adapters(ranks=(1, 1, 1))
    bases, blocks = coordinates(found, "v", "input_concat")
    result = whole(merger("knots-iso-c", merge_coef=1.0), inputs(found))[0]
    for module, (_, values) in bases.items():
        level = torch.linalg.svdvals(blocks[module].sum(dim=0))[:3].mean()
        assert close(torch.linalg.svdvals(result[module])[:3], level * values)


@pytest.mark.parametrize("axis", ["input_concat", "output_concat"])
def test_iso_c_in_weighted_coordinates_is_iso_c(axis: str) -> None:
    given_ = inputs(adapters(ranks=(1, 1, 1)))
    plain = merger("iso-c")
    weighted = merger("knots-iso-c", knots_target="sv", knots_axis=axis)
    assert close(whole(weighted, given_)[0]["g/two"], whole(plain, given_)[0]["g/two"])
    target = Target(2, 1.0)
    one, other = (truncated(rule, given_, target)["g/two"].deltas[0] for rule in (weighted, plain))
    assert isinstance(one, Delta)
    assert isinstance(other, Delta)
    assert close(one.dense(), other.dense())


@pytest.mark.parametrize("target", ["v", "sv"])
@pytest.mark.parametrize("axis", ["input_concat", "output_concat"])
def test_the_mean_in_coordinates_is_flexlora(target: str, axis: str) -> None:
    found, weights = adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0)), (0.5, 0.3, 0.2)
    rule = merger("knots", knots_target=target, knots_axis=axis)
    for rank in (1, 2, 4):
        one, other = (truncated(r, inputs(found, weights), Target(rank, 3.0)) for r in (rule, merger("flexlora")))
        for module in SHAPES:
            first, second = one[module].deltas[0], other[module].deltas[0]
            assert isinstance(first, Delta)
            assert isinstance(second, Delta)
            assert first.scale == second.scale == 3.0
            assert close(first.dense(), second.dense())


def test_both_targets_differ_for_a_rule_that_is_not_linear() -> None:
    given_ = inputs(adapters())
    v, sv = (whole(merger("knots-ties", knots_target=target), given_)[0]["g/one"] for target in ("v", "sv"))
    assert not close(v, sv, 0.05)


def test_bases_that_are_not_kept_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = inputs(adapters())
    kept = whole(merger("knots-ties"), given_)[0]
    monkeypatch.setattr("pfl_plugins.knots.space._bytes", lambda *tensors: -len(tensors))  # never room for another
    again = whole(merger("knots-ties"), given_)[0]
    assert all(torch.equal(kept[module], again[module]) for module in SHAPES)


# Back to adapters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["flexlora", "ties", "dare", "knots-ties", "knots-iso-c", "regmean"])
@pytest.mark.parametrize("split", ["flexlora", "symmetric"])
def test_truncation_folds_the_scale_once(method: str, split: str) -> None:
    given_ = inputs(adapters(ranks=(1, 2, 3), scales=(0.5, 2.0, 4.0)))
    dense = whole(merger(method), given_)[0]
    for target in (Target(2, 0.25), Target(3, 8.0)):
        for module, merged in truncated(merger(method, tsvd_split=split), given_, target).items():
            delta = merged.deltas[0]
            assert isinstance(delta, Delta)
            assert (delta.rank, delta.scale) == (target.rank, target.scale)
            expected = best(dense[module], target.rank)
            assert close(target.scale * delta.up @ delta.down, expected, 1e-8)
            lost = (dense[module] - expected).norm() / dense[module].norm()
            assert merged.report["error"] == pytest.approx(float(lost), abs=1e-7)
            mean_norm = sum(delta.dense().norm() for delta in given_.deltas(module)) / 3
            assert merged.report["norm_ratio"] == pytest.approx(float(dense[module].norm() / mean_norm), rel=1e-6)
            if split == "flexlora":
                assert torch.allclose(delta.down @ delta.down.T, torch.eye(target.rank, dtype=torch.float64), atol=1e-9)
            else:
                assert torch.allclose(delta.up.norm(dim=0), delta.down.norm(dim=1), rtol=1e-9)


def test_several_targets_at_once_are_each_what_they_are_alone() -> None:
    given_ = inputs(adapters())
    targets = [Target(3, 1.0), None, Target(1, 2.0), Target(3, 1.0)]
    for method in ("flexlora", "ties", "iso-c", "knots-ties"):
        together = next(iter(merger(method).merge(given_, targets)))
        for number, target in enumerate(targets):
            alone = next(iter(merger(method).merge(given_, [target])))
            pair = [d.dense() if isinstance(d, Delta) else d for d in (together.deltas[number], alone.deltas[0])]
            assert close(*pair)


def test_iso_c_before_truncation_is_arbitrary_and_truncation_before_it_is_not() -> None:
    found = adapters(ranks=(1, 1, 1))
    noise = torch_rng("noise")
    nudged = [
        {m: Delta(d.up + 1e-11 * torch.randn(d.up.shape, generator=noise), d.down, 2.0) for m, d in one.items()}
        for one in found
    ]
    flat = [reference_iso(stacks(one)["g/one"].sum(dim=0)) for one in (found, nudged)]
    assert not close(best(flat[0], 1), best(flat[1], 1), 0.1)  # a nudge of 1e-11 turns the kept directions over
    ours = [truncated(merger("iso-c"), inputs(one), Target(1, 1.0))["g/one"].deltas[0] for one in (found, nudged)]
    assert close(ours[0].dense(), ours[1].dense(), 1e-8)  # type: ignore[union-attr]


def test_iso_c_keeps_the_leading_directions_of_the_sum() -> None:
    found = adapters(ranks=(1, 1, 1))
    total = stacks(found)["g/one"].sum(dim=0)
    u, s, vt = torch.linalg.svd(total)
    for value, level in (("all", s[:3].mean()), ("kept", s[:2].mean())):
        rule = merger("iso-c", iso_value=value, merge_coef=1.0)
        result = truncated(rule, inputs(found), Target(2, 1.0))["g/one"].deltas[0]
        assert isinstance(result, Delta)
        assert close(result.dense(), level * u[:, :2] @ vt[:2])


def test_a_missing_direction_is_filled_so_that_it_can_learn() -> None:
    found = [{m: Delta(d.up[:, :1], d.down[:1], 2.0) for m, d in adapters()[0].items()}]
    delta = truncated(merger("flexlora"), inputs(found), Target(3, 1.0))["g/one"].deltas[0]
    assert isinstance(delta, Delta)
    assert not delta.up[:, 1:].any()
    assert torch.linalg.matrix_rank(delta.down) == 3
