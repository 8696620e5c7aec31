"""Clients that are sent their task and never report, and clients that come late: no method stops, or waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.plugins import available
from pfl_platform.testing import Bench
from pfl_platform.testing.rounds import Rounds

METHODS = sorted(name for name, plugin in available("method").items() if plugin.module.startswith("pfl_plugins."))


class Losing(Rounds):
    """Rounds in which what some clients would report is lost."""

    lost: tuple[str, ...] = ()

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        kept = [task for task in tasks if task.actor not in self.lost or task.stage != "round"]
        return super().run(kept)


@pytest.mark.parametrize("method", METHODS)
def test_who_never_reports_holds_nobody_up(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client a is silent in the first round, when b and c report; later b is silent, and a has come late."""
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    rounds = Losing(
        Bench(method, tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"]), local_steps=2
    )
    before = rounds.state("a")
    rounds.lost = ("a",)
    rounds.go()
    after = rounds.state("a")
    assert all(torch.equal(after[key], before[key]) for key in before)
    rounds.lost = ("b",)
    held = rounds.state("b")
    rounds.go()
    trained = rounds.state("a")
    assert any(not torch.equal(trained[key], before[key]) for key in before)
    assert all(bool(value.isfinite().all()) for value in trained.values())
    assert all(torch.equal(value, held[key]) for key, value in rounds.state("b").items())
