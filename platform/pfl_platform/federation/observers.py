"""Observers watch a run and never change it. Every method does nothing by default; override what you need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_platform.federation.tasks import Outcome, Task


@dataclass(frozen=True)
class RunInfo:
    """What an observer may know at the start. `rounds_done` is above 0 after a resume. Where clients count in epochs,
    `local_steps` is 0. `notes` are sentences of the benchmark's on its data."""

    folder: Path | None
    method: str
    benchmark: str
    clients: Sequence[str]
    rounds: int
    local_steps: int
    rounds_done: int = 0
    local_epochs: int = 0
    notes: Sequence[str] = ()


class Observer:
    """Base class: silent."""

    def run_started(self, info: RunInfo) -> None:
        """Before preparation and round 0 (or the first round after a resume)."""

    def stage_started(self, stage: str, round_index: int, tasks: Sequence[Task]) -> None:
        """The engine is about to run these tasks."""

    def noted(self, sentence: str) -> None:
        """Something of how the run is carried out that its user should know."""

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        """A local step ended. Called often; be quick. `loss` is a batch mean."""

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        """A task ended; `cached` when its outcome was there from before."""

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        """The round is on disk. `summary` is what `round.json` holds (losses, scores, bytes, seconds, aggregator's
        report)."""

    def run_done(self, results: Mapping[str, Any]) -> None:
        """The results are on disk."""

    def run_failed(self, error: BaseException) -> None:
        """The run stops; what was committed stays."""

    def close(self) -> None:
        """Always called last."""
