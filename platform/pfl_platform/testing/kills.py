"""Where a run may die, and runs that die there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pfl_platform.engines.worker import Worker
from pfl_platform.federation import session
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing.bench import Bench


class Killed(BaseException):
    """Stands for a process that dies: nothing may catch it."""


@dataclass(frozen=True)
class Moment:
    """A moment of a run. kind: "prepare", "baseline", "training" or another stage: before a task of it;
    "evaluation": after a task's training; "commit": when all tasks of preparation or of a round are done, and nothing
    of that is written yet. name: which one of them; it comes once in a run."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"in {self.kind}, at '{self.name}'"


def spread(moments: Sequence[Moment], count: int) -> list[Moment]:
    """`count` of the moments: of every kind its last, of every kind its first, and so on to the middle. Later kinds
    come first in the second lap.

    >>> moments = [Moment(kind, name) for kind, names in {"a": "123", "b": "45"}.items() for name in names]
    >>> [moment.name for moment in spread(moments, 3)]
    ['3', '5', '4']
    """
    waiting: dict[str, deque[Moment]] = {}
    for moment in moments:
        waiting.setdefault(moment.kind, deque()).append(moment)
    chosen: list[Moment] = []
    lap = 0
    while any(waiting.values()) and len(chosen) < count:
        for rest in list(waiting.values())[:: -1 if lap % 2 else 1]:
            if rest and len(chosen) < count:
                chosen.append(rest.popleft() if lap % 2 else rest.pop())
        lap += 1
    return chosen


@contextmanager
def watching(meet: Callable[[Moment], None]) -> Iterator[None]:
    """Calls `meet` at every moment of the runs inside."""
    execute, score = Worker.execute, Worker._score
    prepared, commit = RunFolder.write_prepare, RunFolder.commit_round

    def name_of(task: Task) -> str:
        return f"{task.actor}, round {task.round_index}"

    def executing(self: Worker, task: Task, *rest: Any) -> Outcome:
        meet(Moment("training" if task.stage == "round" else task.stage, name_of(task)))
        return execute(self, task, *rest)

    def scoring(self: Worker, task: Task, *rest: Any) -> Any:
        if task.score:
            meet(Moment("evaluation", f"{task.stage} of {name_of(task)}"))
        return score(self, task, *rest)

    def preparing(self: RunFolder, content: Mapping[str, Any]) -> None:
        meet(Moment("commit", "preparation"))
        prepared(self, content)

    def committing(self: RunFolder, index: int, record: Mapping[str, Any]) -> None:
        meet(Moment("commit", f"round {index}"))
        commit(self, index, record)

    with (
        patch.multiple(Worker, execute=executing, _score=scoring),
        patch.multiple(RunFolder, write_prepare=preparing, commit_round=committing),
    ):
        yield


def die_at(bench: Bench, out: Path, moment: Moment) -> None:
    """Runs into `out` until this moment, at which the process dies."""

    def meet(now: Moment) -> None:
        if now == moment:
            raise Killed

    try:
        with watching(meet):
            session.run(bench.config(), out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark())
    except Killed:
        return
    raise AssertionError(f"the run did not come to the moment {moment} a second time")


@contextmanager
def cache_of_its_own(folder: Path) -> Iterator[None]:
    """`PFL_CACHE`, where components keep what they computed for other runs, is a new folder inside: nothing that an
    earlier run prepared is found."""
    before = os.environ.get("PFL_CACHE")
    os.environ["PFL_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PFL_CACHE"]
        else:
            os.environ["PFL_CACHE"] = before
