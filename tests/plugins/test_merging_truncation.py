"""What was merged goes back into adapters: truncation to a target's rank and scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from merging_support import adapters, best, close, inputs, merger, reference_iso, stacks, truncated, whole
from pfl_platform.federation.merging import Target
from pfl_platform.lowrank import basis, decompose, squares
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng


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


@pytest.mark.parametrize("method", ["flexlora", "iso-c", "knots-ties", "knots-iso-c"])
def test_merges_by_squares_are_those_by_svd(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    given_ = inputs(adapters(ranks=(1, 1, 2)))
    exact = [one.deltas[0] for one in truncated(merger(method), given_, Target(2, 3.0)).values()]
    dense = whole(merger(method), given_)[0].values()
    taken: list[bool] = []
    for where, name in ((decompose, "by_squares"), (basis, "right_vectors")):
        inner = getattr(squares, name)

        def watched(*args: object, inner: Callable[..., object] = inner) -> object:
            found = inner(*args)
            taken.append(found is not None)
            return found

        monkeypatch.setattr(where, name, watched)
    monkeypatch.setattr(squares, "SMALL", 2)
    quick = [one.deltas[0] for one in truncated(merger(method), given_, Target(2, 3.0)).values()]
    assert any(taken)
    for one, other in zip(exact, quick, strict=True):
        assert close(one.dense(), other.dense(), 1e-9)  # type: ignore[union-attr]
    for one, other in zip(dense, whole(merger(method), given_)[0].values(), strict=True):
        assert close(one, other, 1e-9)
