"""CIFAR-100 without its files: every client with its part of the published pictures, all parts alike."""

from __future__ import annotations

from pfl_benchmarks.cifar100.loading import DEFAULTS, METRIC, PUBLIC
from pfl_benchmarks.cifar100.options import NAME, CifarOptions
from pfl_platform.data import ClientData, FixedBenchmark
from pfl_platform.outlines import Unread, counted_task

TRAIN, TEST = 50_000, 10_000
"""Pictures of the published files."""


def outline(options: CifarOptions) -> FixedBenchmark:
    """The law of the partition changes who has which classes, and how many; here all have the mean."""
    share, test = (TRAIN - options.public_size) // options.num_clients, TEST // options.num_clients
    held = int(options.validation_share * share)
    train = share - held
    data = counted_task(
        NAME,
        METRIC,
        min(train, options.train_size or train),
        min(test, options.test_size or test),
        validation=held,
    )
    clients = tuple(
        ClientData(str(index + 1), options.backbones[index % len(options.backbones)], (data,))
        for index in range(options.num_clients)
    )
    sets = {PUBLIC: Unread(options.public_size)}
    return FixedBenchmark(NAME, clients, "outline", defaults=DEFAULTS, public_sets=sets)
