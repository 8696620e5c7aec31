"""The progress displays: what they say is true, on a terminal and in a pipe, and a step costs next to nothing."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.report.display import LiveProgress, PlainProgress
from pfl_platform.report.tracking import Tracker

CLIENTS = ("a", "b")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def info(rounds: int = 4, done: int = 0) -> RunInfo:
    return RunInfo(None, "mine", "bench", CLIENTS, rounds, 5, done)


def task(actor: str, round_index: int = 0, stage: str = "round") -> Task:
    return Task(actor, stage, round_index, "tiny")


def outcome(actor: str, scores: dict[str, float] | None = None) -> Outcome:
    return Outcome(actor, None, None, 3, {"loss/local": 0.5}, scores or {})


def one_round(observer: Observer, index: int, clock: Clock | None = None, scored: bool = False) -> None:
    """Both clients train for 5 s each."""
    tasks = [task(client, index) for client in CLIENTS]
    observer.stage_started("round", index, tasks)
    for item in tasks:
        for step in range(5):
            if clock is not None:
                clock.now += 1
            observer.step_done(item, step, 5, 2.0 - 0.1 * step)
        own, other = item.actor, "b" if item.actor == "a" else "a"
        scores = {f"{own}:t{own}": 60.0 + index, f"{other}:t{other}": 30.0} if scored else None
        observer.task_done(item, outcome(own, scores), cached=False)
    observer.round_done(index, {"loss": 1.25, "report": {"weights": [[0.5, 0.5]]}})


def test_plain_lines_by_hand() -> None:
    """3 s of preparation, then rounds of 10 s; a forecast counts rounds only: 3 x 10 s after the first."""
    clock, file = Clock(), io.StringIO()
    progress = PlainProgress(file, clock=clock)
    progress.run_started(info())
    for stage in ("alignment", "alignment", "baseline"):
        progress.stage_started(stage, 0, [task("backbone tiny", 0, stage)])
        clock.now += 1
        progress.task_done(task("backbone tiny", 0, stage), outcome("backbone tiny", {"a:ta": 5.0}), cached=False)
    for index in range(4):
        one_round(progress, index, clock, scored=index % 2 == 1)
    progress.run_done({})
    progress.close()
    assert file.getvalue().splitlines() == [
        "mine on bench: 2 clients, 4 rounds of 5 local steps",
        "alignment | 1 task | 0.0 s",
        "baseline | 1 task | 2.0 s",
        "round 1/4 | loss 1.2500 | 13.0 s, about 30.0 s left",
        "round 2/4 | loss 1.2500 | Self 61.00, Others 30.00 | 23.0 s, about 20.0 s left",
        "round 3/4 | loss 1.2500 | 33.0 s, about 10.0 s left",
        "round 4/4 | loss 1.2500 | Self 63.00, Others 30.00 | 43.0 s",
        "done | 43.0 s",
    ]


def test_a_long_silence_is_broken() -> None:
    clock, file = Clock(), io.StringIO()
    progress = PlainProgress(file, heartbeat=60, clock=clock)
    progress.run_started(info())
    progress.stage_started("round", 0, [task("a"), task("b")])
    for step in range(300):
        clock.now += 1
        progress.step_done(task("a"), step, 300, 2.0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 1 + 4  # after 61, 122, 183 and 244 s
    assert lines[1] == (
        "after round 0/4 | round | 0/2 done, a, step 61/300 | loss 2.0000 | 1 min 01 s, about 38 min 59 s left"
    )  # 61 s for a tenth of a round: 61 / (61 / 600) * 4 - 61 = 2339 s


def test_a_resumed_run_forecasts_from_its_own_rounds() -> None:
    clock, file = Clock(), io.StringIO()
    progress = PlainProgress(file, clock=clock)
    progress.run_started(info(rounds=10, done=8))
    one_round(progress, 8, clock)
    assert file.getvalue().splitlines() == [
        "mine on bench: 2 clients, 10 rounds of 5 local steps, going on after round 8",
        "round 9/10 | loss 1.2500 | 10.0 s, about 10.0 s left",
    ]


def test_a_stopped_run_says_after_which_round() -> None:
    file = io.StringIO()
    progress = PlainProgress(file, clock=Clock())
    progress.run_started(info())
    one_round(progress, 0)
    progress.run_failed(KeyboardInterrupt())
    assert file.getvalue().splitlines()[-1] == "stopped: 1 of 4 rounds are done | 0.0 s"


def test_the_forecast_moves_within_a_round_and_never_back() -> None:
    """Two clients of 5 s each, 4 rounds: after client a, half a round took 5 s, so 35 s are left. A server's turn and
    scoring that follow do not undo that."""
    clock = Clock()
    tracker = Tracker(clock)
    tracker.run_started(info())
    tracker.stage_started("round", 0, [task("a"), task("b")])
    assert tracker.left is None
    clock.now += 5
    tracker.task_done(task("a"), outcome("a"), cached=False)
    assert tracker.left == pytest.approx(35)
    clock.now += 5
    tracker.task_done(task("b"), outcome("b"), cached=False)
    assert tracker.left == pytest.approx(30)
    tracker.stage_started("distil", 0, [task("server", 0, "distil")])
    assert tracker.left == pytest.approx(30)
    tracker.round_done(0, {})
    assert tracker.left == pytest.approx(30)


def test_what_an_encoding_lacks_does_not_stop_a_run() -> None:
    raw = io.BytesIO()
    progress = PlainProgress(io.TextIOWrapper(raw, encoding="ascii"))
    progress.run_started(RunInfo(None, "mine", "Zoë", CLIENTS, 1, 1))
    assert raw.getvalue().startswith(b"mine on Zo?: 2 clients")


@pytest.mark.parametrize("live", [False, True])
def test_a_step_costs_less_than_20_microseconds(live: bool) -> None:
    progress: Tracker = PlainProgress(io.StringIO())
    if live:
        progress = LiveProgress(Console(file=io.StringIO(), force_terminal=True, width=80))
    progress.run_started(info())
    item = task("a")
    progress.stage_started("round", 0, [item])
    try:
        per_step = min(_seconds_per_step(progress, item) for _ in range(5))
    finally:
        progress.close()
    assert per_step < 20e-6


def _seconds_per_step(progress: Tracker, item: Task) -> float:
    begun = time.perf_counter()
    for step in range(5_000):
        progress.step_done(item, step, 5_000, 1.0)
    return (time.perf_counter() - begun) / 5_000


PROCESS = """
import sys, time
from pfl_platform.federation.observers import RunInfo
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.report.progress import pfl_make_observer

progress = pfl_make_observer("progress", {})
progress.run_started(RunInfo(None, "mine", "bench", ("a", "b"), 3, 5))
for index in range(3):
    tasks = [Task(client, "round", index, "tiny") for client in "ab"]
    progress.stage_started("round", index, tasks)
    for task in tasks:
        for step in range(5):
            progress.step_done(task, step, 5, 1.0)
            time.sleep(0.01)
        scores = {f"{task.actor}:t": 50.0} if index == 1 else {}
        progress.task_done(task, Outcome(task.actor, None, None, 1, {}, scores), False)
    print("a line of somebody else's")
    progress.round_done(index, {"loss": 0.5})
progress.run_done({})
progress.close()
"""


def test_a_pipe_gets_plain_lines_from_a_real_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "a line of somebody else's\n" * 3
    lines = done.stderr.splitlines()
    assert lines[0] == "mine on bench: 2 clients, 3 rounds of 5 local steps"
    assert [line.split(" | ")[0] for line in lines[1:]] == ["round 1/3", "round 2/3", "round 3/3", "done"]
    assert "Self 50.00" in lines[2]
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def on_terminal(code: str, **env: str) -> str:
    """What a process writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **env},
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError as error:
        if error.errno != errno.EIO:  # Linux tells the end of a terminal like this
            raise
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    return b"".join(parts).decode()


def test_a_terminal_gets_bars_and_keeps_what_others_print() -> None:
    seen = on_terminal(PROCESS)
    assert "\x1b[?25l" in seen  # the cursor hides while the bars are drawn
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # and comes back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"rounds .* 1/3", text)
    assert re.search(r"round .* [01]/2 [ab], step \d/5, loss 1\.0000", text)
    assert text.count("a line of somebody else's") == 3
    assert "after round 2: Self 50.00, loss 0.5000" in text
    assert "done in" in text.splitlines()[-1] or "done in" in text.splitlines()[-2]


def test_a_terminal_that_can_do_nothing_gets_plain_lines() -> None:
    seen = on_terminal(PROCESS, TERM="dumb")
    assert "\x1b" not in seen
    assert "round 3/3 | loss 0.5000" in seen
