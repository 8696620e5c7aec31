"""A FLAN set without its files: the tasks and the numbers of samples that were published."""

from __future__ import annotations

from pfl_benchmarks.flan.loading import DEFAULTS, METRIC
from pfl_benchmarks.flan.options import SETS, FlanOptions
from pfl_benchmarks.text.drawing import counted
from pfl_platform.data import ClientData, FixedBenchmark


def outline(name: str, options: FlanOptions) -> FixedBenchmark:
    """A client for each task."""
    chosen = SETS[name]
    clients = tuple(
        ClientData(
            str(index),
            options.backbones[index % len(options.backbones)],
            (counted(task, METRIC, chosen.official, options),),
        )
        for index, task in enumerate(chosen.tasks)
    )
    return FixedBenchmark(name, clients, "outline", defaults=DEFAULTS)
