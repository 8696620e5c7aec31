"""All tasks in this process, in the order given: one after another, or clients of a backbone side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest

from pfl_platform.engines.batches import alone_sentence
from pfl_platform.engines.worker import Worker
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.training.seen import StepObserver


class InProcessEngine:
    """Implements `Engine`. An outcome that is cached under the task's digest is not computed again, unless others that
    belong to it are."""

    def __init__(self, worker: Worker, observers: Sequence[Observer] = ()) -> None:
        self._worker = worker
        self._observers = tuple(observers)
        self._noted: set[str] = set()

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        if not tasks:
            return {}
        for observer in self._observers:
            observer.stage_started(tasks[0].stage, tasks[0].round_index, tasks)
        store = self._worker.place.store
        outcomes: dict[str, Outcome] = {}
        cached: set[str] = set()
        try:
            self._carry_out(tasks, outcomes, cached)
        except BaseException:
            with suppress(Exception):  # what has ended need not be done again, and the error is what there is to say
                store.flush()
            raise
        store.flush()
        return {task.actor: outcomes[task.actor] for task in tasks}

    def _carry_out(self, tasks: Sequence[Task], outcomes: dict[str, Outcome], cached: set[str]) -> None:
        """Fills in the outcomes, and whose of them were there before."""
        store, told = self._worker.place.store, 0
        units = self._worker.units(tasks)
        for unit, following in zip_longest(units, units[1:], fillvalue=()):
            digests = {task.actor: task.digest() for task in unit}
            known = {actor: found for actor, digest in digests.items() if (found := store.cached(digest)) is not None}
            if len(known) < len(unit):
                note_alone(self._worker, unit, self._observers, self._noted)
                due = [task for task in (*unit, *following) if task.recorded is None]
                store.expect(address for task in due for address in (task.state, task.inbox) if address)
                for outcome in self._worker.together(unit, self._observe):
                    if outcome.actor not in known:
                        store.cache(digests[outcome.actor], outcome)
                        outcomes[outcome.actor] = outcome
            outcomes |= known
            cached |= known.keys()
            while told < len(tasks) and tasks[told].actor in outcomes:
                task = tasks[told]
                for observer in self._observers:
                    observer.task_done(task, outcomes[task.actor], task.actor in cached)
                told += 1

    def _observe(self, task: Task) -> StepObserver | None:
        def observe(step: int, amount: int, loss: float) -> None:
            for observer in self._observers:
                observer.step_done(task, step, amount, loss)

        return observe if self._observers else None


def note_alone(worker: Worker, unit: Sequence[Task], observers: Sequence[Observer], noted: set[str]) -> None:
    """Tells observers, once for each reason, why clients do not train side by side though they were to."""
    reason = worker.alone_because(unit)
    if reason and reason not in noted:
        noted.add(reason)
        for observer in observers:
            observer.noted(alone_sentence(reason))
