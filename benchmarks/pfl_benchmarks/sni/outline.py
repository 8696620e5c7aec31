"""Super-NaturalInstructions without its files: as many clients and instances as the options say."""

from __future__ import annotations

from pfl_benchmarks.sni.loading import DEFAULTS, METRIC
from pfl_benchmarks.sni.options import NAME, SniOptions
from pfl_platform.data import ClientData, FixedBenchmark
from pfl_platform.outlines import Unread, counted_task


def outline(options: SniOptions) -> FixedBenchmark:
    """A client for each task."""
    names = options.tasks or tuple(f"task-{index}" for index in range(options.num_clients))
    sizes = {"train": options.train_size, "validation": options.validation_size, "test": options.test_size}
    clients = tuple(
        ClientData(
            str(index),
            options.backbones[index % len(options.backbones)],
            (counted_task(name, METRIC, **sizes, kind="open-ended"),),
        )
        for index, name in enumerate(names)
    )
    return FixedBenchmark(NAME, clients, "outline", defaults=DEFAULTS, public_sets={"test_tasks": Unread(0)})
