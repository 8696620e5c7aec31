"""Progress, TensorBoard and events: what they show is true, and whatever happens to them the run goes on."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import UserError
from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.federation.tasks import Cost, Outcome, Task
from pfl_platform.plugins import PluginManager
from pfl_platform.report.display import LiveProgress, PlainProgress
from pfl_platform.report.journal import Journal
from pfl_platform.report.scalars import Scalars, points
from pfl_platform.store.run_folder import RunFolder

NAMES = ("progress", "tensorboard", "events")
CLIENTS = ("a", "b")


def info(folder: Path | None = None, rounds: int = 4, done: int = 0) -> RunInfo:
    return RunInfo(folder, "mine", "bench", CLIENTS, rounds, 5, done)


def task(actor: str, round_index: int = 0, stage: str = "round") -> Task:
    return Task(actor, stage, round_index, "tiny")


def outcome(actor: str, scores: dict[str, float] | None = None) -> Outcome:
    return Outcome(actor, None, None, 3, {"loss/local": 0.5}, scores or {}, cost=Cost(seconds=1.0, steps=5))


def one_round(observer: Observer, index: int, scored: bool = False) -> None:
    tasks = [task(client, index) for client in CLIENTS]
    observer.stage_started("round", index, tasks)
    for item in tasks:
        for step in range(5):
            observer.step_done(item, step, 5, 2.0 - 0.1 * step)
        own, other = item.actor, "b" if item.actor == "a" else "a"
        scores = {f"{own}:t{own}": 60.0 + index, f"{other}:t{other}": 30.0} if scored else None
        observer.task_done(item, outcome(own, scores), cached=False)
    observer.round_done(index, {"loss": 1.25, "report": {"weights": [[0.5, 0.5]]}})


# --- hooks


@pytest.mark.parametrize("name", NAMES)
def test_they_are_made_by_their_hooks(name: str) -> None:
    observer = PluginManager().make("observer", name, {})
    assert isinstance(observer, Observer)
    observer.close()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"no option 'nmae' of the observer '{name}'"):
        PluginManager().make("observer", name, {"nmae": 1})


def test_options_reach_them() -> None:
    manager = PluginManager()
    assert isinstance(manager.make("observer", "progress", {"style": "live"}), LiveProgress)
    assert isinstance(manager.make("observer", "progress", {"style": "plain"}), PlainProgress)
    assert isinstance(manager.make("observer", "progress", {}), PlainProgress)  # this is no terminal
    with pytest.raises(UserError, match="'style' .*cannot be 'lively'"):
        manager.make("observer", "progress", {"style": "lively"})


def test_the_modules_of_the_hooks_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from pfl_platform.report import events, progress, tensorboard\n"
        "assert progress.pfl_make_observer('another', {}) is None\n"
        "assert not {'torch', 'rich', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "observer", [Journal(), Scalars(), PlainProgress(io.StringIO())], ids=lambda item: type(item).__name__
)
def test_a_run_without_a_folder_is_watched_all_the_same(observer: Observer) -> None:
    observer.run_started(info())
    one_round(observer, 0)
    observer.run_done({})
    observer.close()
    observer.close()


# --- records for the observers that need a folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    part = Choice(name="x")
    config = RunConfig(method="m", benchmark=part, adapter=part, objective=part, aggregator=part)
    return RunFolder.create(tmp_path / "run", config, {})


def record(index: int, scored: bool) -> dict[str, Any]:
    """Losses 1 + index and 3 + index; Self 60 and 70, Others 30 and 40 when scored; 100 bytes up and 2 s each."""
    clients = {}
    for number, (own, other) in enumerate((("a", "b"), ("b", "a"))):
        scores = {f"{own}:t{own}": 60.0 + 10 * number, f"{other}:t{other}": 30.0 + 10 * number} if scored else {}
        clients[own] = {
            "metrics": {"loss/local": 1.0 + 2 * number + index, "accuracy": 9.0},
            "scores": scores,
            "cost": {"up_payload": 100, "seconds": 2.0},
        }
    return {"clients": clients}


def test_points_by_hand() -> None:
    found = dict(points({"round_index": 4, **record(4, scored=True)}))
    assert {tag: value for tag, value in found.items() if not tag.startswith("cost/")} == {
        "loss/a": 5.0,
        "loss/b": 7.0,
        "loss/mean": 6.0,
        "self/a": 60.0,
        "self/b": 70.0,
        "self/mean": 65.0,
        "others/a": 30.0,
        "others/b": 40.0,
        "others/mean": 35.0,
    }
    assert (found["cost/up_payload"], found["cost/seconds"], found["cost/down_wire"]) == (200, 4.0, 0)
    assert not [tag for tag, _ in points(record(0, scored=False)) if tag.startswith(("self", "others", "unseen"))]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def watch(run: RunFolder, rounds: Iterator[int], observer: Observer) -> None:
    for index in rounds:
        run.commit_round(index, record(index, scored=index % 2 == 1))
        observer.round_done(index, {})


def test_a_point_per_round_and_evaluation(run: RunFolder) -> None:
    observer = Scalars()
    observer.run_started(info(run.path))
    watch(run, iter(range(4)), observer)
    observer.close()
    found = curves(run.path / "tensorboard")
    assert found["loss/mean"] == [(1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)]
    assert found["self/mean"] == [(2, 65.0), (4, 65.0)]
    assert found["others/b"] == [(2, 40.0), (4, 40.0)]
    assert found["cost/up_payload"] == [(1, 200.0), (2, 200.0), (3, 200.0), (4, 200.0)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_after_a_crash_no_point_is_there_twice_and_none_is_missing(run: RunFolder) -> None:
    """The first process dies after committing round 3, before its curves are written."""
    first = Scalars()
    first.run_started(info(run.path))
    watch(run, iter(range(2)), first)
    run.commit_round(2, record(2, scored=False))
    first.close()
    time.sleep(1.1)  # event files are ordered by the second in their names
    second = Scalars()
    second.run_started(info(run.path, done=3))
    watch(run, iter([3]), second)
    second.close()
    found = curves(run.path / "tensorboard")
    assert found["loss/mean"] == [(1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)]
    assert found["self/a"] == [(2, 60.0), (4, 60.0)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_events_in_order(run: RunFolder) -> None:
    journal = Journal()
    journal.run_started(info(run.path))
    one_round(journal, 0, scored=True)
    journal.run_failed(ValueError("no"))
    journal.close()
    found = lines(run.path / "events.jsonl")
    assert [line["event"] for line in found] == [
        "run_started",
        "stage_started",
        "task_done",
        "task_done",
        "round_done",
        "run_failed",
    ]
    assert found[0]["clients"] == ["a", "b"]
    assert found[1]["actors"] == ["a", "b"]
    assert (found[2]["actor"], found[2]["cached"], found[2]["cost"]["steps"]) == ("a", False, 5)
    assert found[2]["scores"] == {"a:ta": 60.0, "b:tb": 30.0}
    assert found[4]["summary"]["report"] == {"weights": [[0.5, 0.5]]}
    assert found[5]["error"] == "ValueError: no"
    assert all(abs(line["time"] - time.time()) < 60 for line in found)


def test_steps_are_written_when_asked_for(run: RunFolder) -> None:
    journal = Journal(steps=True)
    journal.run_started(info(run.path))
    one_round(journal, 0)
    journal.close()
    steps = [line for line in lines(run.path / "events.jsonl") if line["event"] == "step_done"]
    assert [(line["actor"], line["step"]) for line in steps] == [(c, step) for c in CLIENTS for step in range(5)]


def test_a_resumed_run_goes_on_after_the_last_whole_line(run: RunFolder) -> None:
    path = run.path / "events.jsonl"
    path.write_text('{"event": "run_started"}\n{"event": "task_do')
    journal = Journal()
    journal.run_started(info(run.path, done=1))
    journal.close()
    assert [line["event"] for line in lines(path)] == ["run_started", "run_started"]
    assert lines(path)[1]["rounds_done"] == 1


class FullFile(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_journal_that_cannot_be_written_does_not_stop_the_run(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    journal.run_started(info(run.path))
    journal.close()
    journal._file = FullFile()  # type: ignore[assignment]
    one_round(journal, 0)
    journal.close()
    assert [entry.message for entry in caplog.records] == [
        "No more events are written: [Errno 28] No space left on device"
    ]


def test_curves_that_cannot_be_written_do_not_stop_the_run(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    (run.path / "tensorboard").write_text("in the way")
    observer = Scalars()
    observer.run_started(info(run.path))
    watch(run, iter([0]), observer)
    observer.close()
    (entry,) = caplog.records
    assert entry.message.startswith("No more TensorBoard scalars are written")
