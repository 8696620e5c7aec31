"""Merging in the coordinates of a common basis (space `knots`), against dense float64 formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from merging_support import (
    SHAPES,
    WEIGHTS,
    adapters,
    close,
    cut_up,
    flattened,
    inputs,
    merger,
    reference_iso,
    reference_ties,
    reference_trim,
    stacks,
    truncated,
    whole,
)
from pfl_platform.federation.merging import Target
from pfl_platform.lowrank.deltas import Delta
from pfl_plugins.knots import space


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


@pytest.mark.parametrize("axis", ["input_concat", "output_concat"])
@pytest.mark.parametrize("method", ["knots-ties", "knots-iso-c", "knots"])
def test_both_ways_back_from_coordinates_agree(monkeypatch: pytest.MonkeyPatch, method: str, axis: str) -> None:
    given_, rule = inputs(adapters(ranks=(1, 2, 3))), merger(method, knots_axis=axis)
    looked = []
    inner = space.common_basis
    monkeypatch.setattr(space, "common_basis", lambda *args: (looked.append(args), inner(*args))[1])

    def made() -> list[Tensor]:
        looked.clear()
        shorter = [one.deltas[0].dense() for one in truncated(rule, given_, Target(2, 3.0)).values()]  # type: ignore[union-attr]
        return [*whole(rule, given_)[0].values(), *shorter]

    from_coordinates, once = made(), len(looked)
    monkeypatch.setattr(space, "_WIDE", 0.0)  # values are always too far apart: from the basis, found again
    from_basis, twice = made(), len(looked)
    assert all(close(one, other, 1e-10) for one, other in zip(from_coordinates, from_basis, strict=True))
    # Two merges of two modules. Without a flat trim a module is lifted right after its basis was found.
    assert (once, twice) == (4, 8 if method == "knots-ties" else 4)
