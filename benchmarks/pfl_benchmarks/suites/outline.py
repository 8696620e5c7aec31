"""A published federation without its files: its clients and tasks, and about as many samples as were published."""

from __future__ import annotations

from pfl_benchmarks.folder.scenario import ScenarioClient, TaskSlot
from pfl_benchmarks.suites import sheet
from pfl_benchmarks.suites.loading import built_in, examined_in
from pfl_benchmarks.suites.options import SuiteOptions
from pfl_benchmarks.suites.standing_in import standing_in
from pfl_platform.data import Benchmark, ClientData, FixedBenchmark, TaskData
from pfl_platform.outlines import counted_task
from pfl_platform.plugins import PluginManager

TEST = 100
"""Test samples of a task, where the card does not say."""


def outline(name: str, options: SuiteOptions) -> Benchmark:
    """All tasks have the same number of samples: the published total over the tasks, at most what one may have."""
    if options.stand_in is not None:
        return standing_in(name, options, PluginManager().outline)
    official = sheet.card(name)["official"]
    clients = examined_in(built_in(name, options), options)
    count = sum(len(client.tasks) for client in clients)
    test = int(official.get("test", TEST))
    train = min(int(official["questions"]) // count - test, int(official.get("train", 10_000)))

    def task(slot: TaskSlot) -> TaskData:
        return counted_task(slot.name, slot.metric, train, test, kind=slot.kind)

    def data(client: ScenarioClient) -> ClientData:
        return ClientData(client.client_id, client.model_id, tuple(map(task, client.tasks)))

    unseen = sheet.unseen(name) if options.unseen else ()
    return FixedBenchmark(
        name,
        tuple(map(data, clients)),
        "outline",
        unseen=tuple(task(slot) for _, client in unseen for slot in client.tasks),
        defaults=sheet.settings(name),
    )
