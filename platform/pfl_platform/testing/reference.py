"""The plain run of a method, watched: many checks only look at it, so a bench makes it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.engines.worker import Worker
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing.bench import Bench
from pfl_platform.testing.kills import Moment, cache_of_its_own, watching


@dataclass(frozen=True)
class Turn:
    """One task of a run, with what was in its inbox."""

    task: Task
    outcome: Outcome
    inbox: Tensors


@dataclass(frozen=True)
class Reference:
    """A finished run whose folder still has the tensors of every round. moments: where it could have died.
    disturbed: it moved torch's global generator."""

    out: Path
    turns: tuple[Turn, ...]
    moments: tuple[Moment, ...]
    disturbed: bool

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(self.out)


def reference(bench: Bench) -> Reference:
    """The run of the method as it comes, with nothing prepared before it; the same one at every call."""
    if bench.reference is None:
        turns: list[Turn] = []
        moments: list[Moment] = []
        before = torch.random.get_rng_state()
        with cache_of_its_own(bench.folder / "cache"), watching(moments.append), _recording(turns):
            out = bench.run()
        disturbed = not torch.equal(before, torch.random.get_rng_state())
        bench.reference = Reference(out, tuple(turns), tuple(moments), disturbed)
    found: Reference = bench.reference
    return found


@contextmanager
def _recording(turns: list[Turn]) -> Iterator[None]:
    """Records every task of the runs inside, and keeps the tensors of every round, to look at messages afterwards."""
    execute = Worker.execute

    def executing(self: Worker, task: Task, *rest: Any) -> Outcome:
        outcome = execute(self, task, *rest)
        turns.append(Turn(task, outcome, self.place.store.get(task.inbox) if task.inbox else {}))
        return outcome

    with (
        patch.object(Worker, "execute", executing),
        patch.object(RunFolder, "collect_garbage", lambda self, *args, **kwargs: None),
    ):
        yield
