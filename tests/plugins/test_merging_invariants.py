"""What holds of every merging rule: invariants, bad input, block sizes, precision."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging_support import NAMES, SHAPES, adapters, close, inputs, merger, stacks, statistic, truncated, whole
from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs, Target
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng
from pfl_plugins.regmean.rule import regmean

ALL = ["flexlora", "task-arithmetic", "ties", "dare", "dare-ties", "iso-c", "knots", "regmean", "fisher", "emr"]

# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "space", "reason"),
    [
        ("emr", "knots", "masks belong to the entries"),
        ("regmean", "knots", "basis of the outputs leaves alone"),
        ("fisher", "knots", "choose `ab`, `delta` or `weight`"),
    ],
)
def test_a_space_where_a_rule_is_not_defined_is_refused_with_the_reason(method: str, space: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"'{method}' cannot merge in the space '{space}'.*{reason}"):
        merger(method, space=space)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("ties", "density", 0.0),
        ("ties", "density", 1.5),
        ("ties", "density", 20),  # a percentage
        ("dare", "drop_rate", 1.0),
        ("dare", "drop_rate", -0.1),
        ("regmean", "a", 1.1),
        ("flexlora", "merge_coef", 0.0),
        ("flexlora", "spaces", "ab"),
        ("iso-c", "merge_coef", float("nan")),
    ],
)
def test_bad_options_are_refused(method: str, option: str, value: object) -> None:
    with pytest.raises(UserError, match=option):
        merger(method, **{option: value})


def test_dense_results_are_no_adapters() -> None:
    with pytest.raises(UserError, match="gives dense matrices, which no adapter can hold"):
        truncated(merger("ties", space="weight"), inputs(adapters()), Target(2, 1.0))


def test_inputs_that_do_not_fit_are_refused() -> None:
    found = adapters()
    given_ = inputs(found)
    alone = Inputs(given_.names, given_.modules, given_.weights, given_.read, given_.rng)
    with pytest.raises(UserError, match="needs gram, measured on the data of every adapter"):
        merger("regmean").check(alone)
    with pytest.raises(UserError, match="Two adapters have the name 'ann'"):
        inputs(found, names=("ann", "bob", "ann"))
    with pytest.raises(UserError, match="weights, not negative and of sum 1"):
        inputs(found, (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="nothing to merge"):
        Inputs((), (), (), inputs(found).read, inputs(found).rng)
    wider = [found[0], {m: Delta(d.up, torch.cat([d.down, d.down], 1), 2.0, "bob") for m, d in found[1].items()}]
    with pytest.raises(UserError, match="'bob' is 6 x 18 and that of 'ann' 6 x 9"):
        whole(merger("ties"), inputs(wider))
    with pytest.raises(UserError, match="gives every adapter its own result: 3, not 1"):
        list(merger("emr").merge(inputs(found), [None]))
    broken = found[1]["g/one"].up.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(UserError, match="'bob': up holds NaN"):
        Delta(broken, found[1]["g/one"].down, 2.0, "bob")


def test_leaving_one_out_renormalises_the_weights() -> None:
    found = adapters()
    rest = inputs(found, (0.5, 0.3, 0.2)).without(["bob"])
    assert rest.names == ("ann", "cyd")
    assert rest.weights == pytest.approx((5 / 7, 2 / 7))
    dense = stacks([found[0], found[2]])["g/one"]
    assert close(whole(merger("flexlora"), rest)[0]["g/one"], (5 * dense[0] + 2 * dense[1]) / 7)
    fisher = whole(merger("fisher"), rest)[0]["g/one"]  # statistics stay with their owners
    assert close(
        fisher, whole(merger("fisher"), inputs([found[0], found[2]], (5 / 7, 2 / 7), ("ann", "cyd")))[0]["g/one"]
    )
    with pytest.raises(UserError, match="Nothing is left to merge"):
        rest.without(["ann", "cyd"])


def test_the_gram_of_one_and_the_diagonal_of_another_are_not_mixed() -> None:
    given_ = inputs(adapters())

    def mixed(name: str, k: int, module: str) -> Tensor:
        gram = statistic(name, NAMES[k], module)
        return gram.diagonal() if k == 1 else gram

    mixture = Inputs(given_.names, given_.modules, given_.weights, given_.read, given_.rng, mixed)
    with pytest.raises(UserError, match="one of 'ann' and 'bob' sent a Gram matrix and the other its diagonal"):
        whole(merger("regmean"), mixture)
    diagonal = Inputs(
        given_.names,
        given_.modules,
        given_.weights,
        given_.read,
        given_.rng,
        lambda name, k, module: statistic(name, NAMES[k], module).diagonal(),
    )
    assert close(whole(merger("regmean"), diagonal)[0]["g/one"], whole(merger("regmean", a=0), given_)[0]["g/one"])


# What statistics cost -------------------------------------------------------------------------------------------------


class Counted:
    """Statistics that say how often each was read, and how many were there at once."""

    def __init__(self) -> None:
        self.reads: Counter[tuple[str, int, str]] = Counter()
        self.most, self._given = 0, list[weakref.ref[Tensor]]()

    def __call__(self, name: str, k: int, module: str) -> Tensor:
        gc.collect()
        self.most = max(self.most, sum(ref() is not None for ref in self._given) + 1)
        self.reads[name, k, module] += 1
        shape = {"gram": (9, 9), "fisher/W": (6, 9)}[name]
        drawn = torch.rand(shape, generator=torch_rng("counted", name, k), dtype=torch.float64)
        found = drawn @ drawn.T if name == "gram" else drawn
        self._given.append(weakref.ref(found))
        return found


def on_one_input(counted: Counted, shared: bool) -> Inputs:
    found = [{"g/k": one["g/one"], "g/q": Delta(-one["g/one"].up, one["g/one"].down + 1, 2.0)} for one in adapters()]
    return replace(inputs(found), statistic=counted, shared=(lambda name, module: name) if shared else None)


@pytest.mark.parametrize("space", ["ab", "delta"])
def test_modules_with_one_input_have_their_gram_matrices_read_once(space: str) -> None:
    apart, together = Counted(), Counted()
    expected = whole(merger("regmean", space=space), on_one_input(apart, False))[0]
    result = whole(merger("regmean", space=space), on_one_input(together, True))[0]
    assert all(close(result[module], expected[module], 1e-12) for module in ("g/k", "g/q"))
    assert sorted(apart.reads.values()) == [1] * 6
    assert dict(together.reads) == {("gram", k, "g/k"): 1 for k in range(3)}
    assert together.most == apart.most == 1


def test_fisher_information_is_there_for_one_client_at_a_time() -> None:
    counted = Counted()
    whole(merger("fisher", space="delta"), on_one_input(counted, False))
    assert set(counted.reads.values()) == {2}  # once for the norms of whole models
    assert counted.most == 1


# Invariants -----------------------------------------------------------------------------------------------------------

Case = tuple[str, dict[str, Any]]
PLAIN: list[Case] = [
    ("flexlora", {}),
    ("flexlora", {"space": "ab"}),
    ("task-arithmetic", {}),
    ("ties", {}),
    ("ties", {"density": 1.0}),
    ("ties", {"space": "ab"}),
    ("dare", {}),
    ("dare-ties", {}),
    ("dare", {"space": "knots"}),
    ("iso-c", {}),
    ("iso-c", {"space": "ab"}),
    ("knots", {}),
    ("knots-ties", {}),
    ("knots-ties", {"knots_axis": "output_concat"}),
    ("knots-iso-c", {}),
    ("regmean", {}),
    ("regmean", {"space": "ab"}),
    ("fisher", {}),
    ("fisher", {"space": "weight"}),
    ("emr", {}),
    ("emr", {"space": "ab"}),
    ("ties", {"space": "weight"}),
]
seeds = st.integers(0, 10**6)


def by_name(case: Case) -> str:
    return "-".join([case[0], *(str(value) for value in case[1].values())])


def is_own(method: str, options: dict[str, Any]) -> bool:
    """Whether K = 1 gives the adapter's own delta."""
    full = options.get("density") == 1.0
    return method in ("flexlora", "knots", "knots-iso-c", "regmean", "fisher", "emr") or (method == "ties" and full)


@pytest.mark.parametrize("case", PLAIN, ids=by_name)
def test_one_adapter_alone(case: Case) -> None:
    method, options = case
    found = adapters(count=1)
    result = whole(merger(method, **options), inputs(found))[0]
    for module, stack in stacks(found).items():
        if method == "task-arithmetic":
            assert close(result[module], 0.4 * stack[0])
        else:
            assert close(result[module], stack[0], 1e-8) == is_own(method, options)


@pytest.mark.parametrize("case", [case for case in PLAIN if is_own(*case) or case[0] == "task-arithmetic"], ids=by_name)
def test_identical_adapters_give_that_adapter_and_a_sum_gives_k_of_it(case: Case) -> None:
    method, options = case
    found = [adapters()[0]] * 3
    for result in whole(merger(method, **options), inputs(found, (0.5, 0.25, 0.25))):
        for module, stack in stacks(found).items():
            factor = 3 * 0.4 if method == "task-arithmetic" else 1.0
            # Each has Gram matrices of its own; where only one adapter is merged, they cannot matter.
            assert close(result[module], factor * stack[0], 1e-8)


@pytest.mark.parametrize("case", PLAIN, ids=by_name)
def test_the_order_of_adapters_changes_nothing(case: Case) -> None:
    method, options = case
    found, order = adapters(), (2, 0, 1)
    weights = (0.5, 0.3, 0.2)
    rule = merger(method, **options)
    straight = whole(rule, inputs(found, weights))
    turned = whole(rule, inputs([found[k] for k in order], [weights[k] for k in order], [NAMES[k] for k in order]))
    for number, other in enumerate(turned):
        one = straight[order[number] if rule.personal else 0]
        assert all(close(other[module], one[module], 1e-8) for module in SHAPES)


@pytest.mark.parametrize("case", PLAIN, ids=by_name)
@settings(max_examples=5)
@given(seed=seeds, power=st.integers(-12, 12))
def test_scaling_the_inputs_scales_the_output(case: Case, seed: int, power: int) -> None:
    method, options = case
    factor = 2.0**power  # exact, so that no magnitude changes places
    found = adapters(seed)
    both = options.get("space") == "ab" and method != "regmean"
    scaled = [
        {m: Delta(factor * d.up, factor * d.down if both else d.down, 2.0, d.name) for m, d in one.items()}
        for one in found
    ]
    rule = merger(method, **options)
    for one, other in zip(whole(rule, inputs(found)), whole(rule, inputs(scaled)), strict=True):
        assert all(close(other[m], (factor**2 if both else factor) * one[m], 1e-7) for m in SHAPES)


@pytest.mark.parametrize("case", PLAIN, ids=by_name)
def test_zero_updates_give_zero(case: Case) -> None:
    method, options = case
    zeros = [{m: Delta(torch.zeros_like(d.up), d.down, 2.0) for m, d in one.items()} for one in adapters()]
    rule = merger(method, **options)
    for result in whole(rule, inputs(zeros)):
        assert all(not tensor.any() and bool(tensor.isfinite().all()) for tensor in result.values())
    if options.get("space") != "weight":
        count = 3 if rule.personal else 1
        for merged in rule.merge(inputs(zeros), [Target(2, 2.0)] * count):
            assert all(bool(d.down.isfinite().all()) and not d.up.any() for d in merged.deltas if isinstance(d, Delta))
            assert all(math.isfinite(value) for value in merged.report.values())


@pytest.mark.parametrize(
    ("method", "holds"),
    [
        ("flexlora", True),
        ("iso-c", True),
        ("regmean", True),
        ("knots-ties", True),
        ("knots-iso-c", True),
        ("ties", False),
        ("dare", False),
        ("emr", False),
    ],
)
def test_turning_the_outputs_turns_the_result_unless_entries_count(method: str, holds: bool) -> None:
    found = adapters()
    turns = {
        m: torch.linalg.qr(torch.randn(d, d, generator=torch_rng("turn", m), dtype=torch.float64)).Q
        for m, (d, _) in SHAPES.items()
    }
    turned = [{m: Delta(turns[m] @ d.up, d.down, 2.0, d.name) for m, d in one.items()} for one in found]
    rule = merger(method)
    one, other = (whole(rule, inputs(these))[0] for these in (found, turned))
    assert all(close(other[m], turns[m] @ one[m], 1e-8) == holds for m in SHAPES)


@pytest.mark.parametrize("method", [*ALL, "knots-ties", "knots-iso-c"])
def test_float32_in_and_out_to_1e_5(method: str) -> None:
    found = adapters()
    short = [{m: Delta(d.up.float(), d.down.float(), 2.0, d.name) for m, d in one.items()} for one in found]
    exact = [{m: Delta(d.up.double(), d.down.double(), 2.0, d.name) for m, d in one.items()} for one in short]
    rule = merger(method)
    for one, other in zip(whole(rule, inputs(short)), whole(rule, inputs(exact)), strict=True):
        assert all(close(one[m], other[m], 1e-5) for m in SHAPES)
    targets = [Target(2, 2.0)] * (3 if rule.personal else 1)
    for merged in rule.merge(inputs(short), targets):
        assert all(isinstance(d, Delta) and d.up.dtype == d.down.dtype == torch.float32 for d in merged.deltas)


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties", "emr", "knots-ties"])
def test_blocks_of_any_size_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = inputs(adapters())
    rule = merger(method, **({"density": 0.3} if "ties" in method else {}))
    count = 3 if rule.personal else 1

    def results(budget: int) -> list[dict[str, Tensor]]:
        monkeypatch.setattr("pfl_plugins.merging.operands.BUDGET", budget)
        monkeypatch.setattr("pfl_plugins.merging.outcomes.BUDGET", budget)
        monkeypatch.setattr("pfl_plugins.merging.outcomes._HOLD", budget)
        cut = [
            {str(n): delta.dense() for n, delta in enumerate(merged.deltas) if isinstance(delta, Delta)}
            for merged in rule.merge(given_, [Target(2, 1.0)] * count)
        ]
        return whole(rule, given_) + cut

    for one, other in zip(results(2**21), results(1), strict=True):
        assert all(close(one[m], other[m], 1e-8) for m in one)


@settings(max_examples=20)
@given(seed=seeds)
def test_regmean_is_affine_equivariant(seed: int) -> None:
    rng = torch_rng("affine", seed)
    stack, origin = (torch.randn(n, 4, 5, generator=rng, dtype=torch.float64) for n in (3, 1))
    x = torch.randn(3, 3, 5, generator=rng, dtype=torch.float64)
    grams = x.transpose(1, 2) @ x  # rank 3 of 5
    shifted, plain = (regmean(t, grams, (0.5, 0.3, 0.2)) for t in (origin + stack, stack))
    assert close(shifted, origin[0] + plain, 1e-8)
