"""Which tasks of a stage are carried out side by side, in one pass through their backbone.

Who trains beside whom changes the last bits of a result. So it follows from the stage's tasks alone: not from what is
known already, from the number of processes, or from what runs where.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Literal

from pfl_platform.adapters.host import BASE, FROZEN
from pfl_platform.backbones import Backbone
from pfl_platform.federation.tasks import Task

Asked = Literal["off", "auto"] | int
CROWDED = "a row of each did not fit into memory"
"""Why clients no longer train side by side."""
MOST, ROWS = 8, 32
"""What `auto` takes: so many clients at most, and so many rows in a pass."""


def clients_of(asked: Asked, rows: int) -> int:
    """How many clients train side by side, when each brings so many rows to a pass.

    >>> [clients_of("auto", rows) for rows in (1, 4, 8, 64)], clients_of(3, 64), clients_of("off", 1)
    ([8, 8, 4, 1], 3, 1)
    """
    if asked == "off":
        return 1
    return max(1, min(MOST, ROWS // rows)) if asked == "auto" else asked


def units(tasks: Sequence[Task], size: int, load: Callable[[str], Backbone]) -> list[tuple[Task, ...]]:
    """The tasks in the order of the first of each unit; a unit's are carried out side by side. Those that could all go
    together are dealt out evenly: of 9 with room for 8, 5 and 4."""
    alike: dict[Hashable, list[Task]] = {}
    for number, task in enumerate(tasks):
        alone = size < 2 or why_alone(task, load)
        alike.setdefault(number if alone else (task.backbone, task.frozen, task.base), []).append(task)
    found = []
    for those in alike.values():
        parts = -(-len(those) // size)
        bounds = [len(those) * part // parts for part in range(parts + 1)]
        found += [tuple(those[low:high]) for low, high in pairwise(bounds)]
    order = {task.actor: number for number, task in enumerate(tasks)}
    return sorted(found, key=lambda unit: order[unit[0].actor])


def why_alone(task: Task, load: Callable[[str], Backbone]) -> str:
    """Why a task is carried out by itself; empty where it can have company."""
    if task.recorded is not None or not task.phases:
        return "nothing is trained"
    if not (backbone := load(task.backbone)).rows_apart:
        return f"'{task.backbone}' mixes the rows of a batch"
    if backbone.task_head:
        return f"'{task.backbone}' has a task head, which is each client's own"
    if any(step.train.names(FROZEN) for phase in task.phases for step in phase.steps):
        return "what all clients of a backbone share is trained"
    if any(want.keys.names(BASE) for item in task.statistics for want in item.wants):
        return "a statistic wants gradients of the backbone's own weights"
    return ""


def alone_sentence(reason: str) -> str:
    """What is said of clients that were to train side by side and do not."""
    return f"Clients train one after another and not side by side where {reason}."
