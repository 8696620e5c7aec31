"""Reading a federation: scenario, records, pictures and splits put together, everything checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_benchmarks.folder import index
from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.content import digest_of, samples_of
from pfl_benchmarks.folder.files import confined
from pfl_benchmarks.folder.options import FolderOptions, ReadingOptions
from pfl_benchmarks.folder.pictures import Pictures
from pfl_benchmarks.folder.public import FOLDER as PUBLIC
from pfl_benchmarks.folder.public import public_files, read_public
from pfl_benchmarks.folder.records import read_records
from pfl_benchmarks.folder.scenario import ScenarioClient, TaskSlot, find_scenario, read_scenario
from pfl_benchmarks.folder.splits import capped, content_keys, cut_validation, odd_answers, overlaps
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData
from pfl_platform.errors import UserError, nearest
from pfl_platform.settings import read as read_settings

DEFAULTS = "defaults.yaml"
PROPOSABLE = ("rounds", "local_steps", "cohort", "training", "stream", "evaluation", "public", "methods")
"""Run settings that a folder may propose in its `defaults.yaml`."""


Source = Callable[[TaskSlot, str], "list[Sample] | None"]
"""(task, split) -> its samples, where they come from other files than the form's; None where they do not."""


@dataclass(frozen=True)
class Plan:
    """Who has which tasks, and where their files lie.

    name: the benchmark's. root: the folder that holds `dataset/`. where: what errors call the scenario. unseen: tasks
    that nobody trains on, each with what errors call its scenario. public: a public set's file or folder. source: asked
    first for every task's samples.
    """

    name: str
    root: Path
    where: str
    clients: Sequence[ScenarioClient]
    unseen: Sequence[tuple[str, ScenarioClient]] = ()
    public: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None


@dataclass
class _Loader:
    """State of one load: what was read so far, so that a file used by several clients is read once."""

    options: ReadingOptions
    root: Path
    source: Source | None
    pictures: Pictures
    named: dict[str, tuple[str, str]] = field(default_factory=dict)
    read: dict[TaskSlot, tuple[list[Sample], list[Sample]]] = field(default_factory=dict)
    tasks: dict[TaskSlot, TaskData] = field(default_factory=dict)

    def read_tasks(self, client: ScenarioClient, scenario: str) -> None:
        """Reads the record files of a client and notes their pictures."""
        for slot in client.tasks:
            if (other := self.named.setdefault(slot.name, slot.data)) != slot.data:
                both = " and ".join(f"subset '{subset}' of '{dataset}'" for dataset, subset in (other, slot.data))
                raise UserError(
                    f"{scenario}: {both} would both be the task '{slot.name}'; rename a data set or a subset."
                )
            if slot not in self.read:
                train = self._read_split(client, slot, "train", self.options.max_train, scenario)
                self.read[slot] = (train, self._read_split(client, slot, "test", self.options.max_test, scenario))

    def _read_split(
        self, client: ScenarioClient, slot: TaskSlot, split: str, limit: int | None, scenario: str
    ) -> list[Sample]:
        file = slot.file(self.root, split)
        found = self.source(slot, split) if self.source is not None else None
        if found is not None:
            return list(capped(found, limit, self.options.data_seed, "cap", slot.name, split).values())
        if not file.is_file():
            raise UserError(f"{scenario}: the client '{client.client_id}' needs {file}, which does not exist.")
        confined(file, self.root)
        samples = read_records(file, self.root, f"{slot.name}/{split}", choices=slot.kind == "multi-choice")
        if not samples:
            raise UserError(f"The client '{client.client_id}' has no {split} data: {file} holds no record.")
        kept = capped(samples, limit, self.options.data_seed, "cap", slot.name, split)
        self.pictures.add(kept, file, self.root)
        return list(kept.values())

    def split_tasks(self) -> dict[str, Hashable]:
        """Cuts the validation sets of all tasks read; returns the content keys."""
        keys = content_keys(
            (sample for parts in self.read.values() for part in parts for sample in part), self.pictures
        )
        files = {(slot.name, split): part for slot, parts in self.read.items() for split, part in enumerate(parts)}
        elsewhere = Counter(key for part in files.values() for key in {keys[sample.id] for sample in part})
        for slot, (train, test) in self.read.items():
            address = (self.options.data_seed, "validation", slot.name)
            parts = cut_validation(train, self.options.validation_fraction, keys, elsewhere, *address)
            self.tasks[slot] = TaskData(slot.name, slot.kind, slot.metric, *parts, tuple(test), group=slot.dataset)
        return keys

    def backbones(self, clients: Sequence[ScenarioClient], scenario: str) -> list[str]:
        """Per client the backbone that the options or the scenario propose."""
        chosen, models = self.options.backbone_map, {client.model_id for client in clients}
        if unused := next((model for model in chosen if model not in models), None):
            hint = nearest(unused, models)
            raise UserError(f"The option 'backbone_map' names the model_id '{unused}', which {scenario} lacks.{hint}")
        backbones = []
        for client in clients:
            backbone = chosen.get(client.model_id, client.model_id) or self.options.default_backbone
            if not backbone:
                who = f"the client '{client.client_id}'"
                raise UserError(f"{scenario}: {who} has no model_id; set the option 'default_backbone'.")
            backbones.append(backbone)
        return backbones


def load(options: FolderOptions) -> FolderBenchmark:
    """Reads and checks a federation; without `path`, only the public set that `public` names."""
    if options.path is None:
        return _only_public(options)
    path, root = options.path, options.root or options.path
    if not path.is_dir():
        raise UserError(f"The benchmark folder {path} does not exist or is no folder.")
    if not (root / "dataset").is_dir():
        raise UserError(f"{root} has no folder 'dataset'; name the folder that holds it.")
    scenario = find_scenario(path, options.scenario)
    clients = read_scenario(scenario)
    files = [find_scenario(path, name) for name in options.unseen]
    return assemble(
        Plan(
            path.resolve().name,
            root,
            str(scenario),
            clients,
            unseen=[(str(file), client) for file in files for client in read_scenario(file)],
            public=confined(path / PUBLIC, path) if (path / PUBLIC).is_dir() else None,
            defaults=_proposed(path, clients),
        ),
        options,
    )


def assemble(plan: Plan, options: ReadingOptions) -> FolderBenchmark:
    """Reads and checks all that a plan names; a large federation is indexed, and opened from its index later."""
    folder = None if plan.source is not None else index.index_folder(plan, _record_files(plan, options), options)
    known = None if folder is None else index.read(folder, options)
    if known is not None:
        return known
    made = _read_all(plan, options)
    large = len(samples_of(task for client in made.clients for task in client.tasks)) >= index.LARGE
    if folder is not None and large and index.write(folder, made):
        return index.read(folder, options) or made
    return made


def _record_files(plan: Plan, options: ReadingOptions) -> list[Path]:
    """All files whose content decides what is read, beside pictures."""
    slots = dict.fromkeys(slot for client in (*plan.clients, *(one for _, one in plan.unseen)) for slot in client.tasks)
    files = [slot.file(plan.root, split) for slot in slots for split in ("train", "test")]
    public = options.public or plan.public
    return files + (public_files(public) if public and public.exists() else [])


def _read_all(plan: Plan, options: ReadingOptions) -> FolderBenchmark:
    clients = plan.clients
    loader = _Loader(options, plan.root, plan.source, Pictures(options.max_pixels))
    backbones = loader.backbones(clients, plan.where)
    for client in clients:
        loader.read_tasks(client, plan.where)
    unseen = _read_unseen(loader, plan)
    loader.pictures.check(options.check)
    keys = loader.split_tasks()

    data = tuple(
        ClientData(client.client_id, backbone, tuple(loader.tasks[slot] for slot in client.tasks))
        for client, backbone in zip(clients, backbones, strict=True)
    )
    unseen_tasks = tuple(loader.tasks[slot] for slot in unseen)
    public = options.public or plan.public
    sets = _public_sets(options, public, samples_of(loader.tasks.values()), loader.pictures) if public else {}
    content = digest_of(data, unseen_tasks, sets, loader.pictures)
    fixed = FixedBenchmark(plan.name, data, content, unseen_tasks, plan.defaults, sets)
    tasks = loader.tasks.values()
    return FolderBenchmark(fixed, options, loader.pictures, overlaps(tasks, keys), odd_answers(tasks))


def _read_unseen(loader: _Loader, plan: Plan) -> list[TaskSlot]:
    """Reads the tasks that nobody may train on."""
    trained = {slot.data for client in plan.clients for slot in client.tasks}
    unseen: dict[TaskSlot, None] = {}
    for where, client in plan.unseen:
        if clash := next((slot.name for slot in client.tasks if slot.data in trained), None):
            raise UserError(f"{where}: the task '{clash}' is not unseen, as a client of this federation trains on it.")
        loader.read_tasks(client, where)
        unseen.update(dict.fromkeys(client.tasks))
    return list(unseen)


def _public_sets(
    options: ReadingOptions, path: Path, clients: Sequence[Sample], pictures: Pictures
) -> Mapping[str, Sequence[Sample]]:
    return read_public(
        path,
        clients,
        root=options.public_root,
        limit=options.public_size,
        seed=options.data_seed,
        check=options.check,
        pictures=pictures,
    )


def _only_public(options: FolderOptions) -> FolderBenchmark:
    """Public sets for a benchmark that has its clients from elsewhere."""
    if options.public is None:
        raise UserError("The benchmark 'folder' needs the option 'path': the folder of your federation.")
    pictures = Pictures(options.max_pixels)
    sets = _public_sets(options, options.public, (), pictures)
    content = digest_of((), (), sets, pictures)
    return FolderBenchmark(FixedBenchmark(options.public.stem, (), content, public_sets=sets), options, pictures)


def _proposed(path: Path, clients: Sequence[ScenarioClient]) -> Mapping[str, Any]:
    """Run settings in the folder's `defaults.yaml`, if there is one, and what the scenario says of single clients."""
    file = path / DEFAULTS
    settings = read_settings(confined(file, path)) if file.is_file() else {}
    if unknown := next((key for key in settings if key not in PROPOSABLE), None):
        raise UserError(f"{file}: a benchmark cannot propose '{unknown}'." + nearest(unknown, PROPOSABLE))
    own = {client.client_id: {"adapter": dict(client.adapter)} for client in clients if client.adapter}
    return {**settings, "clients": own} if own else settings
