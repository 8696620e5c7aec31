"""All tasks in this process, one after another, in the order given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pfl_platform.engines.worker import Worker
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Outcome, Task


class InProcessEngine:
    """Implements `Engine`. An outcome that is cached under the task's digest is not computed again."""

    def __init__(self, worker: Worker, observers: Sequence[Observer] = ()) -> None:
        self._worker = worker
        self._observers = tuple(observers)

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        if not tasks:
            return {}
        for observer in self._observers:
            observer.stage_started(tasks[0].stage, tasks[0].round_index, tasks)
        outcomes: dict[str, Outcome] = {}
        for task in tasks:
            outcome, cached = self._one(task)
            outcomes[task.actor] = outcome
            for observer in self._observers:
                observer.task_done(task, outcome, cached)
        return outcomes

    def _one(self, task: Task) -> tuple[Outcome, bool]:
        store = self._worker.place.store
        digest = task.digest()
        known = store.cached(digest)
        if known is not None:
            return known, True

        def observe(step: int, amount: int, loss: float) -> None:
            for observer in self._observers:
                observer.step_done(task, step, amount, loss)

        outcome = self._worker.execute(task, observe if self._observers else None)
        store.cache(digest, outcome)
        return outcome, False
