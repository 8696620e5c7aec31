"""The engine of a launch: the tasks of a stage, spread over groups of ranks.

Rank 0 says which group takes which tasks. Each group carries its own out as one process does, one after another or side
by side, and sends what came of them to rank 0, which tells all. Outcomes are cached as they come, so that a launch that
dies in the middle of a round has lost only what was under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pfl_platform.engines.inprocess import note_alone
from pfl_platform.engines.ranks.assign import Assigner
from pfl_platform.engines.ranks.together import Following, Leading
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import RunStopped
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.disk import outcome_json, outcome_of
from pfl_platform.training.seen import StepObserver


class LeadingEngine:
    """Implements `Engine` at rank 0. Observers hear of all tasks in their order, as soon as those before have ended."""

    def __init__(self, worker: Worker, observers: Sequence[Observer], together: Leading, groups: int) -> None:
        self._worker = worker
        self._observers = tuple(observers)
        self._together = together
        self._assigner = Assigner(groups)
        self._noted: set[str] = set()

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        if not tasks:
            return {}
        store = self._worker.place.store
        digests = {task.actor: task.digest() for task in tasks}
        outcomes = {task.actor: known for task in tasks if (known := store.cached(digests[task.actor])) is not None}
        cached = frozenset(outcomes)
        units = [unit for unit in self._worker.units(tasks) if any(task.actor not in cached for task in unit)]
        assigned = self._assigner.assign(units)
        waiting = [task for unit in units for task in unit if task.actor not in cached]
        groups = {task.actor: assigned[task.actor] for task in waiting}
        self._together.tell({"digests": digests, "groups": groups}, gather=True)
        for observer in self._observers:
            observer.stage_started(tasks[0].stage, tasks[0].round_index, tasks)
        told = self._tell(tasks, outcomes, cached, 0)
        for unit in units:
            if assigned[unit[0].actor] == 0:
                note_alone(self._worker, unit, self._observers, self._noted)
                for outcome in self._execute(unit):
                    if outcome.actor not in cached:
                        outcomes[outcome.actor] = outcome
                        store.cache(digests[outcome.actor], outcome)
            self._collect(waiting, digests, outcomes)
            told = self._tell(tasks, outcomes, cached, told)
        while len(outcomes) < len(tasks):
            self._together.wait()
            self._collect(waiting, digests, outcomes)
            told = self._tell(tasks, outcomes, cached, told)
        self._assigner.learn(waiting, outcomes)
        self._together.tell({actor: outcome_json(outcome) for actor, outcome in outcomes.items()})
        return {task.actor: outcomes[task.actor] for task in tasks}

    def _execute(self, unit: Sequence[Task]) -> Sequence[Outcome]:
        def observed(task: Task) -> StepObserver:
            def observe(step: int, amount: int, loss: float) -> None:
                self._together.hub.check()
                for observer in self._observers:
                    observer.step_done(task, step, amount, loss)

            return observe

        try:
            return self._worker.together(unit, observed)
        except RunStopped:
            self._together.hub.check()  # what stopped it is another rank's error, and no matter of this task
            raise

    def _collect(self, tasks: Sequence[Task], digests: Mapping[str, str], outcomes: dict[str, Outcome]) -> None:
        self._together.hub.check()
        for task in tasks:
            if task.actor not in outcomes:
                found = self._together.hub.take_done(digests[task.actor])
                if found is not None:
                    outcomes[task.actor] = found

    def _tell(self, tasks: Sequence[Task], outcomes: Mapping[str, Outcome], cached: frozenset[str], told: int) -> int:
        """Tells observers of the tasks that have ended and follow the first `told`; returns how many they know of."""
        while told < len(tasks) and tasks[told].actor in outcomes:
            task = tasks[told]
            for observer in self._observers:
                observer.task_done(task, outcomes[task.actor], task.actor in cached)
            told += 1
        return told


class FollowingEngine:
    """Implements `Engine` at every other rank of a launch. `group`: the one that this rank is in."""

    def __init__(self, worker: Worker, observers: Sequence[Observer], together: Following, group: int) -> None:
        self._worker = worker
        self._observers = tuple(observers)
        self._together = together
        self._group = group

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        if not tasks:
            return {}
        plan = self._together.told()
        digests = {task.actor: task.digest() for task in tasks}
        if digests != plan["digests"]:
            raise RunStopped("Its tasks are not those of rank 0: a component decides something by chance or by time.")
        for observer in self._observers:
            observer.stage_started(tasks[0].stage, tasks[0].round_index, tasks)
        store = self._worker.place.store
        for unit in self._worker.units(tasks):
            missing = [task for task in unit if plan["groups"].get(task.actor) == self._group]
            if not missing:
                continue
            outcomes = {outcome.actor: outcome for outcome in self._worker.together(unit, self._step)}
            for task in missing:
                store.cache(digests[task.actor], outcomes[task.actor])
                for observer in self._observers:
                    observer.task_done(task, outcomes[task.actor], False)
        return {actor: outcome_of(fields) for actor, fields in self._together.told().items()}

    def _step(self, task: Task) -> StepObserver:
        def observe(step: int, amount: int, loss: float) -> None:
            for observer in self._observers:
                observer.step_done(task, step, amount, loss)

        return observe
