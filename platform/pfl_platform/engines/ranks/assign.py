"""Which group of ranks takes which task.

Tasks of one backbone go to as few groups as possible, since a group that has loaded a backbone can serve all its
clients; among groups, work is spread evenly, the longest first. Where a task runs decides nothing but time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pfl_platform.federation.tasks import Outcome, Task

SLACK = 1.1
"""How far above an even share a group may get before a backbone is loaded in another one."""


@dataclass
class Assigner:
    """Assigns stage after stage: it remembers what tasks took, and what groups have loaded."""

    groups: int
    _seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    _loaded: list[set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self._loaded = [set() for _ in range(self.groups)]

    def learn(self, tasks: Sequence[Task], outcomes: Mapping[str, Outcome]) -> None:
        """What tasks of this kind take, for the next time."""
        for task in tasks:
            if task.recorded is None:
                self._seconds[task.stage, task.actor] = outcomes[task.actor].cost.seconds

    def assign(self, units: Sequence[Sequence[Task]]) -> dict[str, int]:
        """Group of each actor; a unit's tasks go to one."""
        tasks = [task for unit in units for task in unit]
        work = self._work(tasks)
        load = [0.0] * self.groups
        share = sum(work.values()) / self.groups
        per_backbone: dict[str, float] = {}
        for task in tasks:
            per_backbone[task.backbone] = per_backbone.get(task.backbone, 0.0) + work[task.actor]
        found: dict[str, int] = {}
        sums = {unit[0].actor: sum(work[task.actor] for task in unit) for unit in units}
        order = sorted(
            (unit[0] for unit in units),
            key=lambda task: (-per_backbone[task.backbone], task.backbone, -sums[task.actor]),
        )
        for task in order:
            least = min(range(self.groups), key=lambda group: (load[group], group))
            holders = [group for group in range(self.groups) if task.backbone in self._loaded[group]]
            fitting = [group for group in holders if load[group] + sums[task.actor] <= share * SLACK]
            chosen = min(fitting, key=lambda group: (load[group], group)) if fitting else least
            found[task.actor] = chosen
            load[chosen] += sums[task.actor]
            self._loaded[chosen] |= {task.backbone, *task.others}
        return {task.actor: found[unit[0].actor] for unit in units for task in unit}

    def _work(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Seconds of each task, measured where the same was done before; else by its steps and cells, in proportion to
        the tasks that were."""
        guess = {task.actor: _amount(task) for task in tasks}
        known = {
            task.actor: self._seconds[task.stage, task.actor]
            for task in tasks
            if (task.stage, task.actor) in self._seconds
        }
        rate = sum(known.values()) / sum(guess[actor] for actor in known) if known else 1.0
        return {actor: known.get(actor, amount * rate) for actor, amount in guess.items()}


def _amount(task: Task) -> float:
    """Local steps, batches of statistics and cells of a task; never zero."""
    steps = sum(phase.amount * len(phase.steps) for phase in task.phases)
    return (
        1e-3
        + (0.0 if task.recorded is not None else steps + sum(item.amount for item in task.statistics))
        + len(task.score)
    )
