"""What a run itself watches: who is at work, and what was no client's turn."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Cost, Outcome, Task


class Place(Observer):
    """Who is at work, so that an error of the data can be found."""

    def __init__(self) -> None:
        self._waiting: list[Task] = []
        self._steps = 0

    def stage_started(self, stage: str, round_index: int, tasks: Sequence[Task]) -> None:
        self._waiting, self._steps = list(tasks), 0

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        self._steps = step + 1
        if self._waiting and self._waiting[0] is not task:  # others are carried out elsewhere
            self._waiting = [task, *(other for other in self._waiting if other is not task)]

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        self._waiting, self._steps = [other for other in self._waiting if other is not task], 0

    def sentence(self) -> str:
        """Actor, round and steps done; empty between tasks."""
        if not self._waiting:
            return ""
        task = self._waiting[0]
        where = f"round {task.round_index + 1}" if task.stage in ("round", "score") else f"stage '{task.stage}'"
        return f" It happened at '{task.actor}' in {where}, after {self._steps} of its local steps."


class Books(Observer):
    """Costs of what was no client's turn: preparation, the baseline, a server that trains."""

    def __init__(self) -> None:
        self._costs: list[Cost] = []

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        if task.stage not in ("round", "score"):
            self._costs.append(outcome.cost)

    def taken(self) -> list[Cost]:
        """What was booked since the last call."""
        costs, self._costs = self._costs, []
        return costs
