"""Where a run stands: what the progress displays have in common. Stores numbers, prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pfl_platform.evaluation.matrix import KINDS, mean, values_of
from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.report.units import score_text, time_text

_SMOOTH = 0.9
_TOO_EARLY = 0.02  # share of the run below which a forecast would be a guess


class Tracker(Observer):
    """Counts rounds, tasks and steps, smooths the loss, and forecasts the time left from the rounds of this process.

    A stage belongs to a round when clients act in it; the others (preparation, baseline, a server that trains) are
    shown but do not enter the forecast.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._rounds_begun = clock()
        self._in_rounds = False
        self.info = RunInfo(None, "", "", (), 0, 0)
        self.rounds_done = 0
        self.stage = ""
        self.stage_tasks = self.tasks_done = 0
        self.actor = ""
        self.step = self.steps = 0
        self.loss: float | None = None
        self.round_loss: float | None = None
        self._part = 0.0
        self.scored_after = 0
        self.scores: dict[str, float] = {}
        self._round_scores: list[dict[str, float | None]] = []

    def run_started(self, info: RunInfo) -> None:
        self.info = info
        self.rounds_done = info.rounds_done

    def stage_started(self, stage: str, round_index: int, tasks: Sequence[Task]) -> None:
        self._part = self._round_part
        self.stage, self.stage_tasks, self.tasks_done = stage, len(tasks), 0
        self.actor, self.step, self.steps, self.loss = "", 0, 0, None
        if not self._in_rounds and self.of_clients(tasks):
            self._in_rounds, self._rounds_begun = True, self._clock()

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        self.actor, self.step, self.steps = task.actor, step + 1, amount
        self.loss = loss if self.loss is None else _SMOOTH * self.loss + (1 - _SMOOTH) * loss

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        self.tasks_done += 1
        self.actor, self.step, self.steps = task.actor, 0, 0
        if outcome.scores and task.actor in self.info.clients:
            self._round_scores.append(values_of(task.actor, outcome.scores))

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        self.rounds_done = round_index + 1
        self.tasks_done = self.stage_tasks = 0
        self._part = 0.0
        self.round_loss = summary.get("loss")
        if self._round_scores:
            means = {kind: mean(values[kind] for values in self._round_scores) for kind in KINDS}
            self.scores = {kind: value for kind, value in means.items() if value is not None}
            self.scored_after = self.rounds_done
            self._round_scores = []

    def of_clients(self, tasks: Sequence[Task]) -> bool:
        """Whether clients act in a stage."""
        clients = set(self.info.clients)
        return any(task.actor in clients for task in tasks)

    @property
    def stage_done(self) -> float:
        """Tasks done in this stage, the running one by its steps."""
        return self.tasks_done + (self.step / self.steps if self.steps else 0.0)

    @property
    def _round_part(self) -> float:
        """Share of the round that is over; what follows local training (a server's turn, scoring) does not lower it."""
        return max(self._part, self.stage_done / self.stage_tasks if self._in_rounds and self.stage_tasks else 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the run was started or resumed."""
        return self._clock() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds until the last round ends; None while too little has been seen."""
        if not self._in_rounds:
            return None
        done = self.rounds_done - self.info.rounds_done + self._round_part
        total = self.info.rounds - self.info.rounds_done
        if done <= _TOO_EARLY * total:
            return None
        return (self._clock() - self._rounds_begun) / done * max(total - done, 0.0)

    def times(self) -> str:
        """Elapsed and left, as text."""
        left = self.left
        ahead = f", about {time_text(left)} left" if left is not None and self.rounds_done < self.info.rounds else ""
        return f"{time_text(self.elapsed)}{ahead}"

    def score_line(self) -> str:
        """The latest scores, means over clients."""
        return ", ".join(f"{kind.capitalize()} {score_text(value)}" for kind, value in self.scores.items())
