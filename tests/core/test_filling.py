"""Cells that are scored after a run: as the run itself would have scored them, and each once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.data import FixedBenchmark
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.filling import Wanted, fill
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import client

FULL = {"evaluation.others": "true", "evaluation.unseen": "true"}
SELF = {"evaluation.others": "false", "evaluation.unseen": "false"}


def with_unseen(kit: Bench, clients: int = 3) -> FixedBenchmark:
    return replace(kit.benchmark(clients), unseen=client("stranger", "", 4).tasks)


def finished(kit: Bench, name: str, **settings: str) -> Path:
    out = kit.folder / name
    config = kit.config(**settings)
    session.run(config, out, quiet=True, plugins=kit.manager, benchmark=with_unseen(kit))
    return out


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("fedmosaic", tmp_path_factory.mktemp("filling"), ("tiny-llama-s", "tiny-llama-m"), rounds=2)


@pytest.fixture(scope="module")
def whole(kit: Bench) -> dict[str, Any]:
    """The results of a run that scored everything itself, with its predictions."""
    out = finished(kit, "whole", **FULL)
    return {"results": json.loads((out / "results.json").read_bytes()), "predictions": rows(out)}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(actor, cell) of everything that a worker scores."""
    before = Worker.execute
    seen: list[tuple[str, str]] = []

    def execute(self: Worker, task: Task, *rest: Any) -> Outcome:
        seen.extend((task.actor, cell.key) for cell in task.score)
        return before(self, task, *rest)

    monkeypatch.setattr(Worker, "execute", execute)
    return seen


def rows(out: Path) -> set[tuple[str, ...]]:
    lines = map(json.loads, (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    return {tuple(str(line[key]) for key in ("client", "cell", "id", "text", "score")) for line in lines}


def filled(kit: Bench, out: Path, **wanted: Any) -> dict[str, Any]:
    return fill(out, Wanted(**wanted), plugins=kit.manager, benchmark=with_unseen(kit))


def test_cells_are_what_the_run_itself_would_have_scored(kit: Bench, whole: dict[str, Any]) -> None:
    out = finished(kit, "filled", **SELF)
    before = json.loads((out / "results.json").read_bytes())
    found = filled(kit, out, others=True, unseen=True)
    assert found == json.loads((out / "results.json").read_bytes())
    for name, entry in whole["results"]["clients"].items():
        assert before["clients"][name]["others"]["last"] is None
        mine = found["clients"][name]
        assert mine["tasks"] == entry["tasks"]
        assert mine["self"] == entry["self"]
        for kind in ("others", "unseen"):
            assert {key: mine[kind][key] for key in ("last", "baseline", "gain")} == {
                key: entry[kind][key] for key in ("last", "baseline", "gain")
            }
    assert rows(out) == whole["predictions"]
    assert found["cost"] == before["cost"]  # filling is no part of the run's cost


def test_no_cell_is_scored_twice(kit: Bench, scored: list[tuple[str, str]]) -> None:
    out = finished(kit, "once", **SELF)
    scored.clear()
    filled(kit, out, others=True)
    # Three clients, each on two tasks of others; and before training, the task of c on the small backbone, those of a
    # and b on the large one and, for each other, on the small one.
    ours = [(actor, cell) for actor, cell in scored if not actor.startswith("others ")]
    assert sorted(ours) == sorted((a, f"{b}:copy-{b}") for a in "abc" for b in "abc" if a != b)
    assert len(scored) == len(set(scored)) == 6 + 5
    scored.clear()
    filled(kit, out, others=True)
    assert scored == []
    filled(kit, out, others=True, unseen=True)
    assert {cell for _, cell in scored} == {":copy-stranger"}
    assert len(scored) == 3 + 2


def test_more_items_replace_fewer(kit: Bench, scored: list[tuple[str, str]]) -> None:
    out = finished(kit, "items", **FULL, **{"evaluation.items_others": "1"})
    assert len([row for row in rows(out) if row[1] == "b:copy-b" and row[0] == "a"]) == 1
    filled(kit, out, others=True, items=0)
    assert len([row for row in rows(out) if row[1] == "b:copy-b" and row[0] == "a"]) == 4
    assert len([row for row in rows(out) if row[1] == ":copy-stranger" and row[0] == "a"]) == 1
    scored.clear()
    filled(kit, out, others=True, items=2)
    assert scored == []


def test_a_stopped_filling_goes_on(kit: Bench, scored: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished(kit, "stopped", **SELF)
    scored.clear()
    counting, left = Worker.execute, 8

    def stopping(self: Worker, task: Task, *rest: Any) -> Outcome:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return counting(self, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "execute", stopping)
        with pytest.raises(KeyboardInterrupt):
            filled(kit, out, others=True)
    assert len(scored) == 8
    filled(kit, out, others=True)
    assert len(scored) == len(set(scored)) == 11


def test_what_cannot_be_filled_is_said(kit: Bench, tmp_path: Path) -> None:
    out = finished(kit, "refused", **SELF)
    with pytest.raises(UserError, match=r"Say what to score: --others, --unseen, or both\."):
        filled(kit, out)
    with pytest.raises(UserError, match=r"--items is a number of test items per task, or 0 for all; -1 is neither\."):
        filled(kit, out, others=True, items=-1)
    with pytest.raises(UserError, match=r"no run at .*nowhere"):
        filled(kit, tmp_path / "nowhere", others=True)
    with pytest.raises(UserError, match=r"cannot be evaluated with the same numbers"):
        fill(out, Wanted(unseen=True), plugins=kit.manager, benchmark=kit.benchmark(2))
    (out / "results.json").unlink()
    with pytest.raises(UserError, match=r"is not finished; go on with: pfl-platform resume"):
        filled(kit, out, others=True)
