"""A published federation from its files: which of them are there, and what comes of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.files import confined
from pfl_benchmarks.folder.loading import Plan, assemble
from pfl_benchmarks.folder.public import FOLDER as PUBLIC
from pfl_benchmarks.folder.scenario import ScenarioClient, TaskSlot, find_scenario, read_scenario
from pfl_benchmarks.roots import find_root
from pfl_benchmarks.suites import sheet
from pfl_benchmarks.suites.large import FedDpaFiles
from pfl_benchmarks.suites.options import LargeOptions, ScopeOptions, SuiteOptions
from pfl_benchmarks.suites.scope import ScopeFiles, examined, unexamined
from pfl_platform.data import DATA, Sample
from pfl_platform.errors import UserError

SPLITS = ("train", "test")
MOST_NAMED = 40
"""Tasks without files that a sentence names."""


class Source(Protocol):
    """Samples from other files than those of the folder form."""

    def has(self, slot: TaskSlot, split: str) -> bool:
        """Whether it would give them; reads no more than it must."""
        ...

    def __call__(self, slot: TaskSlot, split: str) -> list[Sample] | None:
        """Them, or None where it has none."""
        ...


@dataclass(frozen=True)
class Suite:
    """A published federation on disk, before its records are read."""

    name: str
    root: Path
    clients: tuple[ScenarioClient, ...]
    unseen: tuple[tuple[str, ScenarioClient], ...]
    source: Source | None

    @property
    def slots(self) -> tuple[TaskSlot, ...]:
        """All tasks, each once."""
        own = (slot for client in self.clients for slot in client.tasks)
        others = (slot for _, client in self.unseen for slot in client.tasks)
        return tuple(dict.fromkeys((*own, *others)))

    def there(self, slot: TaskSlot) -> bool:
        """Whether a task's train and test samples are there."""
        return all(self.lies(slot, split) for split in SPLITS)

    def lies(self, slot: TaskSlot, split: str) -> bool:
        return slot.file(self.root, split).is_file() or (self.source is not None and self.source.has(slot, split))


def locate(name: str, options: SuiteOptions) -> Path:
    """The folder of a suite: the given one, else the first of its folders in $PFL_DATA that is there."""
    folders = sheet.card(name)["folders"]
    data = os.environ.get(DATA)
    there = next((folder for folder in folders if data and (Path(data) / folder).is_dir()), folders[0])
    return find_root(options.root, there, sheet.card(name)["title"])


def suite(name: str, options: SuiteOptions) -> Suite:
    """Who has what, and where it lies; no record is read."""
    root = locate(name, options)
    if options.scenario is None:
        clients = built_in(name, options)
    else:
        if options.preset is not None or options.order != "published":
            raise UserError("A scenario file says itself who has what; leave out 'preset' and 'order'.")
        clients = with_models(read_scenario(find_scenario(root, options.scenario)), options)
    source: Source | None = None
    if isinstance(options, LargeOptions):
        source = FedDpaFiles(root, options)
    clients = examined_in(clients, options)
    if isinstance(options, ScopeOptions):
        source = ScopeFiles(root, clients, options)
    return Suite(name, root, clients, sheet.unseen(name) if options.unseen else (), source)


def built_in(name: str, options: SuiteOptions) -> tuple[ScenarioClient, ...]:
    """The clients of the published scenario in one of its orders, with the models that the options ask for."""
    clients = sheet.clients(name, order=options.order, preset=options.preset, metric=options.metric)
    return with_models(clients, options)


def with_models(clients: tuple[ScenarioClient, ...], options: SuiteOptions) -> tuple[ScenarioClient, ...]:
    """The clients with the published models, or with small ones in their places."""
    if options.models != "tiny":
        return clients
    small = sheet.tiny(dict.fromkeys(client.model_id for client in clients))
    return tuple(replace(client, model_id=small[client.model_id]) for client in clients)


def examined_in(clients: tuple[ScenarioClient, ...], options: SuiteOptions) -> tuple[ScenarioClient, ...]:
    """The clients, with tasks scored as the tests that the options ask for."""
    return examined(clients, options) if isinstance(options, ScopeOptions) else clients


def load(name: str, options: SuiteOptions) -> FolderBenchmark:
    """Reads a published federation; with `missing: skip` as much of it as is there."""
    found = suite(name, options)
    missing = [slot for slot in found.slots if not found.there(slot)]
    remarks = unexamined(found.clients, options) if isinstance(options, ScopeOptions) else ()
    if missing:
        said = absent(found, missing)
        if options.missing == "refuse" or len(missing) == len(found.slots):
            raise UserError(
                f"{said} They are published as {sheet.card(name)['published_at']}; `pfl-platform data layout {name}` "
                "shows where they go. The benchmark option missing: skip leaves tasks out."
            )
        found = without(found, missing)
        remarks += (f"{said} They are left out, so results are not comparable with published ones.",)
    public = found.root / PUBLIC
    plan = Plan(
        name,
        found.root,
        f"the scenario of '{name}'",
        found.clients,
        unseen=found.unseen,
        public=confined(public, found.root) if public.is_dir() else None,
        defaults=sheet.settings(name),
        source=found.source,
    )
    made = assemble(plan, options.model_copy(update={"root": found.root}))
    return replace(made, remarks=remarks)


def absent(found: Suite, missing: Sequence[TaskSlot]) -> str:
    """A sentence that names the tasks that have no files, by data set."""
    subsets: dict[str, list[str]] = {}
    for slot in missing[:MOST_NAMED]:
        subsets.setdefault(slot.dataset, []).append(slot.subset)
    named = "; ".join(f"{dataset} ({', '.join(parts)})" for dataset, parts in subsets.items())
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    title = sheet.card(found.name)["title"]
    return f"Of the {len(found.slots)} tasks of {title}, {len(missing)} have no files in {found.root}: {named}{more}."


def without(found: Suite, missing: Iterable[TaskSlot]) -> Suite:
    """The suite without some tasks, and without clients that have no other."""
    gone = set(missing)

    def rest(client: ScenarioClient) -> ScenarioClient:
        return replace(client, tasks=tuple(slot for slot in client.tasks if slot not in gone))

    clients = tuple(kept for client in found.clients if (kept := rest(client)).tasks)
    if not clients:
        raise UserError(f"No client of '{found.name}' has a task with files in {found.root}.")
    unseen = tuple((group, kept) for group, client in found.unseen if (kept := rest(client)).tasks)
    return replace(found, clients=clients, unseen=unseen)
