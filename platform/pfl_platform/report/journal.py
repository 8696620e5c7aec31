"""The observer that appends events to a file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.disk import outcome_json

logger = logging.getLogger(__name__)


class Journal(Observer):
    """Every line holds `time` (seconds since 1970) and `event`, and what the event brings.

    Events: run_started, stage_started, task_done, round_done, run_done, run_failed; step_done when `steps`. A resumed
    run goes on in the same file; what a killed process left of a line is cut off first. A run without a folder has no
    journal.
    """

    def __init__(self, *, steps: bool = False) -> None:
        self._steps = steps
        self._file: BinaryIO | None = None

    def run_started(self, info: RunInfo) -> None:
        if info.folder is None:
            return
        path = info.folder / "events.jsonl"
        try:
            _cut_torn_line(path)
            self._file = path.open("ab")
        except OSError as error:
            logger.warning("No events are written: %s", error)
        self._write(
            "run_started",
            method=info.method,
            benchmark=info.benchmark,
            clients=list(info.clients),
            rounds=info.rounds,
            local_steps=info.local_steps,
            **({"local_epochs": info.local_epochs} if info.local_epochs else {}),
            rounds_done=info.rounds_done,
        )

    def stage_started(self, stage: str, round_index: int, tasks: Sequence[Task]) -> None:
        self._write("stage_started", stage=stage, round_index=round_index, actors=[task.actor for task in tasks])

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        if self._steps:
            self._write("step_done", actor=task.actor, round_index=task.round_index, step=step, loss=loss)

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        place = {"stage": task.stage, "round_index": task.round_index, "backbone": task.backbone}
        self._write("task_done", **place, cached=cached, **outcome_json(outcome))

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        self._write("round_done", round_index=round_index, summary=dict(summary))
        self._flush()

    def run_done(self, results: Mapping[str, Any]) -> None:
        self._write("run_done", summary=results.get("summary"))

    def run_failed(self, error: BaseException) -> None:
        self._write("run_failed", error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False, default=str)
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            self._give_up(error)

    def _flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """An observer changes nothing: a run does not end because its journal cannot be written."""
        logger.warning("No more events are written: %s", error)
        self.close()


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
