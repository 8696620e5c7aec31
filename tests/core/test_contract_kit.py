"""The contract kit itself: where it kills, and what is there afterwards."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pfl_platform.federation.components import ClientContext, Objective
from pfl_platform.federation.setup import build
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.testing.checks import phases_add_up_to_the_budget
from pfl_platform.testing.kills import Moment, cache_of_its_own, die_at, spread, watching
from pfl_platform.training.surfaces import Phase


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("sft", tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"])


def test_every_stage_is_met_and_no_moment_comes_twice(bench: Bench) -> None:
    """Two backbones with two baseline tasks each; three clients in two rounds, evaluated in both."""
    met: list[Moment] = []
    with watching(met.append):
        bench.run()
    assert Counter(moment.kind for moment in met) == {
        "baseline": 4,
        "training": 6,
        "evaluation": 4 + 6,
        "commit": 1 + 2,
    }
    assert len(set(met)) == len(met)
    assert {moment.kind for moment in spread(met, 6)} == {"baseline", "training", "evaluation", "commit"}
    assert len(set(spread(met, 100))) == len(met)


def test_a_run_dies_where_it_is_told_to(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "in preparation"
    die_at(bench, out, Moment("commit", "preparation"))
    folder = RunFolder.open(out)
    assert folder.read_prepare() is None
    assert len(list((out / "outcomes").glob("*.json"))) == 4  # nothing of the baseline is computed twice
    out = tmp_path / "in evaluation"
    die_at(bench, out, Moment("evaluation", "round of b, round 0"))
    folder = RunFolder.open(out)
    assert folder.read_prepare() is not None
    assert folder.last_round() is None
    assert len(list((out / "outcomes").glob("*.json"))) == 1  # client a's
    bench.resume(out)
    assert len(RunFolder.open(out).rounds()) == 2
    with pytest.raises(AssertionError, match="did not come to the moment"):
        die_at(bench, tmp_path / "never", Moment("prepare", "sft prepares nothing"))


def test_a_cache_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "elsewhere"):
        monkeypatch.delenv("PFL_CACHE", raising=False)
        if before:
            monkeypatch.setenv("PFL_CACHE", before)
        with cache_of_its_own(tmp_path):
            assert os.environ["PFL_CACHE"] == str(tmp_path)
        assert os.environ.get("PFL_CACHE") == before


@pytest.mark.parametrize(("first", "amount"), [(2, 2), (1, 3), (2, 4)])
def test_phases_that_miss_the_budget_are_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: int, amount: int
) -> None:
    """Of five steps the first phase takes two; the second one must take the three that follow."""
    setup = build(bench.config(), bench.manager, bench.benchmark())
    whole = type(setup.parts.objective).phases

    def parted(self: Objective, ctx: ClientContext) -> tuple[Phase, ...]:
        (phase,) = whole(self, ctx)
        if ctx.local_steps < 5:
            return (phase,)
        return (replace(phase, amount=2), replace(phase, name="second", first=first, amount=amount))

    monkeypatch.setattr(type(setup.parts.objective), "phases", parted)
    with pytest.raises(AssertionError, match="round 0"):
        phases_add_up_to_the_budget(bench)
