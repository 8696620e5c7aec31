"""What tasks hold at most, measured; for tests and tools that compare plans with runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile

from pfl_platform.engines.worker import Worker
from pfl_platform.federation.tasks import Task


@contextmanager
def task_peaks() -> Iterator[list[tuple[str, int]]]:
    """Inside, every task that this process carries out on the CPU is noted: its stage, and the bytes that torch's
    allocator had given out when it held most, with weights and adapters of the hosts that the task works on."""
    found: list[tuple[str, int]] = []
    execute = Worker.execute

    def watched(worker: Worker, task: Task, *rest: Any) -> Any:
        held = _held(worker, task)  # makes the hosts: the profiler would count them again
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            outcome = execute(worker, task, *rest)
        assert trace.profiler is not None
        events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        found.append((task.stage, held + most))
        return outcome

    with mock.patch.object(Worker, "execute", watched):
        yield found


def _held(worker: Worker, task: Task) -> int:
    held: dict[int, int] = {}
    for name in {task.backbone, *task.others}:
        host = worker.host(name)
        for tensor in (*host.backbone.model.parameters(), *host.backbone.model.buffers(), *host.params.values()):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(held.values())
