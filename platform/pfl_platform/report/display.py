"""The two progress displays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pfl_platform.federation.observers import RunInfo
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.report.tracking import Tracker
from pfl_platform.report.units import counted, time_text

_REFRESHES = 8
"""Most redraws per second."""


def headline(info: RunInfo) -> str:
    """What is being run, in one line."""
    amount = counted(*((info.local_epochs, "local epoch") if info.local_epochs else (info.local_steps, "local step")))
    resumed = f", going on after round {info.rounds_done}" if info.rounds_done else ""
    size = f"{counted(len(info.clients), 'client')}, {counted(info.rounds, 'round')} of {amount}"
    return f"{info.method} on {info.benchmark}: {size}{resumed}"


def notes(info: RunInfo) -> list[str]:
    """What the benchmark says of its data, a line each; not again where a run goes on."""
    return [] if info.rounds_done else [f"note: {line}" for line in info.notes]


class PlainProgress(Tracker):
    """One line per round and per new kind of stage, and one now and then while nothing ends. Lines are whole: each is
    written and flushed at once."""

    def __init__(self, file: IO[str], heartbeat: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._file = file
        self._heartbeat = heartbeat
        self._last_line = clock()
        self._seen: set[str] = set()

    def run_started(self, info: RunInfo) -> None:
        super().run_started(info)
        for line in (headline(info), *notes(info)):
            self._say(line)

    def noted(self, sentence: str) -> None:
        self._say(f"note: {sentence}")

    def stage_started(self, stage: str, round_index: int, tasks: Sequence[Task]) -> None:
        super().stage_started(stage, round_index, tasks)
        if stage not in self._seen and not self.of_clients(tasks):
            self._say(f"{stage} | {len(tasks)} task{'' if len(tasks) == 1 else 's'} | {self.times()}")
        self._seen.add(stage)

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        super().step_done(task, step, amount, loss)
        if self._clock() - self._last_line > self._heartbeat:
            self._beat()

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        super().task_done(task, outcome, cached)
        if self._clock() - self._last_line > self._heartbeat:
            self._beat()

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        super().round_done(round_index, summary)
        loss = f" | loss {self.round_loss:.4f}" if self.round_loss is not None else ""
        scores = f" | {self.score_line()}" if self.scored_after == self.rounds_done else ""
        self._say(f"round {self.rounds_done}/{self.info.rounds}{loss}{scores} | {self.times()}")

    def run_done(self, results: Mapping[str, Any]) -> None:
        self._say(f"done | {time_text(self.elapsed)}")

    def run_failed(self, error: BaseException) -> None:
        self._say(f"stopped: {self.rounds_done} of {self.info.rounds} rounds are done | {time_text(self.elapsed)}")

    def _beat(self) -> None:
        at = f"{self.actor}, step {self.step}/{self.steps}" if self.steps else self.actor
        loss = f" | loss {self.loss:.4f}" if self.loss is not None else ""
        where = f"{self.stage} | {self.tasks_done}/{self.stage_tasks} done, {at}{loss}"
        self._say(f"after round {self.rounds_done}/{self.info.rounds} | {where} | {self.times()}")

    def _say(self, line: str) -> None:
        self._last_line = self._clock()
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._file.flush()


class LiveProgress(Tracker):
    """Bars at the foot of the terminal, redrawn by rich's own thread; a step only stores its numbers. What others print
    meanwhile appears above."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._live: Live | None = None

    def run_started(self, info: RunInfo) -> None:
        super().run_started(info)
        self._console.print(headline(info), style="bold")
        for line in notes(info):
            self._console.print(line, markup=False)
        self._live = Live(
            get_renderable=self._frame, console=self._console, refresh_per_second=_REFRESHES, transient=True
        )
        self._live.start()

    def noted(self, sentence: str) -> None:
        self._console.print(f"note: {sentence}", markup=False)

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        super().round_done(round_index, summary)
        if self.scored_after == self.rounds_done:
            loss = f", loss {self.round_loss:.4f}" if self.round_loss is not None else ""
            self._console.print(f"after round {self.rounds_done}: {self.score_line()}{loss}")

    def run_done(self, results: Mapping[str, Any]) -> None:
        self._stop()
        self._console.print(f"done in {time_text(self.elapsed)}")

    def run_failed(self, error: BaseException) -> None:
        self._stop()
        self._console.print(f"stopped: {self.rounds_done} of {self.info.rounds} rounds are done")

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _frame(self) -> RenderableType:
        """The current state; called by the redrawing thread."""
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_column(no_wrap=True, max_width=20)
        rows.add_column(width=24)
        rows.add_column(no_wrap=True, justify="right")
        rows.add_column(no_wrap=True, overflow="ellipsis")
        total = self.info.rounds
        rows.add_row("rounds", _bar(self.rounds_done, total), f"{self.rounds_done}/{total}", Text(self.times()))
        if self.stage:
            at = f"{self.actor}, step {self.step}/{self.steps}" if self.steps else self.actor
            loss = f", loss {self.loss:.4f}" if self.loss is not None and self.steps else ""
            count = f"{self.tasks_done}/{self.stage_tasks}"
            rows.add_row(Text(self.stage), _bar(self.stage_done, self.stage_tasks), count, Text(at + loss))
        return Group(rows)


def _bar(done: float, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=done, width=24)
