"""GLUE without its files: the tasks and the numbers of rows that were published."""

from __future__ import annotations

from pfl_benchmarks.glue.check import OFFICIAL
from pfl_benchmarks.glue.loading import DEFAULTS, choose
from pfl_benchmarks.glue.options import NAME, GlueOptions
from pfl_platform.data import ClientData, FixedBenchmark
from pfl_platform.outlines import counted_task


def outline(options: GlueOptions) -> FixedBenchmark:
    """A client for each task."""
    clients = []
    for index, task in enumerate(choose(options.tasks)):
        train, test = OFFICIAL[task.name]
        data = counted_task(
            task.name,
            task.metric,
            options.train_size or train - options.validation_size,
            options.test_size or test,
            validation=options.validation_size,
            kind=task.kind,
        )
        clients.append(ClientData(task.name, options.backbones[index % len(options.backbones)], (data,)))
    return FixedBenchmark(NAME, tuple(clients), "outline", defaults=DEFAULTS)
