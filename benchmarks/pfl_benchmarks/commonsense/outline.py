"""The eight tasks without their files: as many samples as the published files hold, at most."""

from __future__ import annotations

from pfl_benchmarks.commonsense.check import OFFICIAL
from pfl_benchmarks.commonsense.loading import DEFAULTS, METRIC, choose
from pfl_benchmarks.commonsense.options import NAME, CommonsenseOptions
from pfl_benchmarks.text.drawing import counted
from pfl_platform.data import ClientData, FixedBenchmark


def outline(options: CommonsenseOptions) -> FixedBenchmark:
    """One or more clients for each task."""
    parts = options.clients_per_task
    tasks = [
        (name if parts == 1 else f"{name}-{part}", counted(name, METRIC, OFFICIAL[name], options, parts))
        for name in choose(options.tasks)
        for part in range(parts)
    ]
    clients = tuple(
        ClientData(client_id, options.backbones[index % len(options.backbones)], (task,))
        for index, (client_id, task) in enumerate(tasks)
    )
    return FixedBenchmark(NAME, clients, "outline", defaults=DEFAULTS)
