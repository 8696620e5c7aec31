"""The contract kit itself: where it kills, and what is there afterwards."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.testing.kills import Moment, cache_of_its_own, die_at, spread, watching


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
