"""From a configuration to a federation that can start: builds components, checks that they fit, loads backbones.

Everything that can be wrong is found here, before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pfl_platform.adapters.surfaces import AdapterType
from pfl_platform.backbones import Backbone
from pfl_platform.config import Choice, RunConfig
from pfl_platform.data import Benchmark, FilePicture, Picture, Sample, TaskData
from pfl_platform.engines.worker import Worker, Workplace
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import Judge
from pfl_platform.evaluation.surfaces import Cell, Metric
from pfl_platform.federation.components import Federation
from pfl_platform.federation.rounds import OWN, Parts
from pfl_platform.federation.tasks import Share, Store
from pfl_platform.plugins import PluginManager, default
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.run_folder import safe_name


@dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    config: RunConfig
    benchmark: Benchmark
    adapter: AdapterType
    parts: Parts
    backbone_of: Mapping[str, str]
    load: Callable[[str], Backbone]
    metrics: Mapping[str, Metric]

    public: Callable[[], Sequence[Sample]]

    def federation(self, store: Store) -> Federation:
        return Federation(self.config, self.benchmark, self.adapter, self.backbone_of, store, self.load, self.public)

    def worker(self, store: Store) -> Worker:
        """The worker of this process."""
        config = self.config
        objective = self.parts.objective
        judge = Judge(self.metrics, config.evaluation.batch_size, config.evaluation.max_new_tokens)
        tasks = {
            Cell(client.client_id, task.name): task for client in self.benchmark.clients for task in client.tasks
        } | {Cell("", task.name): task for task in self.benchmark.unseen}
        return Worker(
            Workplace(
                seed=config.seed,
                load=self.load,
                adapter=self.adapter,
                slots=objective.slots,
                mixes=objective.mixes,
                store=store,
                judge=judge,
                cell_data=tasks.__getitem__,
                cell_items=self._items,
            )
        )

    def _items(self, cell: Cell, task: TaskData, actor: str) -> Sequence[Sample]:
        options = self.config.evaluation
        items = task.test if options.split == "test" else task.validation
        own = cell.owner == actor or actor.startswith(OWN)
        limit = options.items if own or not options.items_others else options.items_others
        return items[:limit] if limit else items


def build(config: RunConfig, plugins: PluginManager, benchmark: Benchmark | None = None) -> Setup:
    """Makes and checks everything. Raises `UserError` with one sentence for whatever does not fit.

    benchmark: used instead of the one that the configuration names.
    """

    def made(kind: str, choice: Choice) -> Any:
        return plugins.make(kind, choice.name, choice.options)

    if benchmark is None:
        benchmark = plugins.make("benchmark", config.benchmark.name, config.benchmark.options)
    check_clients(benchmark)
    adapter: AdapterType = made("adapter", config.adapter)
    parts = Parts(
        objective=made("objective", config.objective),
        aggregator=made("aggregator", config.aggregator),
        personalizer=made("personalizer", config.personalizer) if config.personalizer else None,
        postprocessors=tuple(made("postprocessor", choice) for choice in config.postprocessors),
    )
    check_components(config, parts)
    backbone_of = assign(config, benchmark)
    loaded: dict[str, Backbone] = {}

    def load(name: str) -> Backbone:
        if name not in loaded:
            with torch.random.fork_rng(devices=[]):  # libraries draw first weights, which files replace
                loaded[name] = plugins.make("backbone", name, backbone_options(config))
        return loaded[name]

    # A backbone may be known by several names; it is loaded, and averaged, as one.
    backbone_of = {client: load(name).name for client, name in backbone_of.items()}
    for name in sorted(set(backbone_of.values())):
        loaded.setdefault(name, load(name))
        adapter.check(load(name))
    check_modality(config, benchmark, backbone_of, load, parts)
    names = {task.metric for client in benchmark.clients for task in client.tasks}
    names |= {task.metric for task in benchmark.unseen}
    metrics: dict[str, Metric] = {name: plugins.make("metric", name, {}) for name in sorted(names)}
    public = public_set(config, benchmark, plugins)
    setup = Setup(config, benchmark, adapter, parts, backbone_of, load, metrics, public)
    fed = setup.federation(MemoryStore())
    for name in parts.objective.others(fed):
        adapter.check(load(name))
    for component in parts.components:
        component.check(fed)
    return setup


def public_set(config: RunConfig, benchmark: Benchmark, plugins: PluginManager) -> Callable[[], Sequence[Sample]]:
    """Reads the public set when it is first asked for: one of the benchmark's, or the folder or file that was named.

    A folder or file may hold what some client has too; such samples are left out.
    """
    name, size, seed = config.public.name, config.public.size, config.seed
    if name is None or not Path(name).is_absolute():
        return cache(lambda: benchmark.public(name, size, seed))
    reader: Benchmark = plugins.make("benchmark", default("benchmark-from-path").name, {"public": name})

    @cache
    def read() -> Sequence[Sample]:
        private = {
            content(sample)
            for client in benchmark.clients
            for task in client.tasks
            for part in (task.train, task.validation, task.test)
            for sample in part
        }
        found = [sample for sample in reader.public(None, size, seed) if content(sample) not in private]
        if not found:
            raise UserError(f"The public set {name} holds nothing that the clients of '{benchmark.name}' do not have.")
        return found

    return read


def content(sample: Sample) -> tuple[Hashable, ...]:
    """What is asked, about which pictures; pictures in files count by their bytes."""
    return (*(turn.human for turn in sample.turns), *(_pixels(picture) for picture in sample.pictures))


def _pixels(picture: Picture) -> str:
    if not isinstance(picture, FilePicture):
        return picture.key
    return hashlib.sha256(picture.path.read_bytes()).hexdigest()


def public_digest(samples: Sequence[Sample]) -> str:
    """Names a public set by its content."""
    return hashlib.sha256(repr([(content(sample), sample.gold) for sample in samples]).encode()).hexdigest()


def backbone_options(config: RunConfig) -> dict[str, object]:
    """Options that every backbone is loaded with: the run's own, and the engine's precision and device."""
    device = config.engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"dtype": config.engine.dtype, "device": device, **config.backbone_options}


def check_clients(benchmark: Benchmark) -> None:
    """Clients exist, have different ids, and have data to train on."""
    seen: set[str] = set()
    if not benchmark.clients:
        raise UserError(f"The benchmark '{benchmark.name}' has no clients.")
    for client in benchmark.clients:
        if client.client_id in seen:
            raise UserError(f"Two clients of '{benchmark.name}' have the id '{client.client_id}'.")
        seen.add(client.client_id)
        if ":" in client.client_id:
            raise UserError(f"The client id '{client.client_id}' of '{benchmark.name}' holds a colon; choose another.")
        safe_name(client.client_id)
        if client.num_examples == 0:
            raise UserError(f"The client '{client.client_id}' of '{benchmark.name}' has no training samples.")
        names = [task.name for task in client.tasks]
        if len(set(names)) != len(names):
            raise UserError(f"The client '{client.client_id}' of '{benchmark.name}' has two tasks of the same name.")


def assign(config: RunConfig, benchmark: Benchmark) -> dict[str, str]:
    """The backbone of each client: by id, else by '*', else what the benchmark proposes."""
    given = config.backbones
    return {
        client.client_id: given.get(client.client_id, given.get("*", client.backbone)) for client in benchmark.clients
    }


def check_components(config: RunConfig, parts: Parts) -> None:
    """Objective, aggregator and adapter agree on what they exchange."""
    for component in parts.components:
        needed = component.needs.adapters
        if needed and config.adapter.name not in needed:
            raise UserError(
                f"{type(component).__name__} works with the adapters {', '.join(needed)}, "
                f"not with '{config.adapter.name}'."
            )
        if component.needs.full_cohort and config.cohort:
            raise UserError(f"{type(component).__name__} needs every client in every round; leave `cohort` at 0.")
    needs = parts.aggregator.needs
    up, down = _slots(parts.objective.up), _slots(parts.objective.down)
    who, whom = config.aggregator.name, config.objective.name
    for slot in needs.consumes:
        if slot not in up and not (slot == "*" and up):
            wanted = "updates" if slot == "*" else f"keys '{slot}/...'"
            sends = ", ".join(f"'{name}/...'" for name in sorted(up)) or "nothing"
            raise UserError(f"The aggregator '{who}' needs {wanted}, but the objective '{whom}' sends {sends}.")
    for slot in sorted(up if "*" in needs.replies else set(needs.replies)):
        if slot not in down:
            takes = ", ".join(f"'{name}/...'" for name in sorted(down)) or "nothing"
            raise UserError(f"The aggregator '{who}' replies with keys '{slot}/...', but '{whom}' takes in {takes}.")


def _slots(shares: Sequence[Share]) -> set[str]:
    return {pattern.split("/")[0] for share in shares for pattern in share.keys.patterns}


def check_modality(
    config: RunConfig,
    benchmark: Benchmark,
    backbone_of: Mapping[str, str],
    load: Callable[[str], Backbone],
    parts: Parts,
) -> None:
    """Text-only backbones get no pictures, in training or evaluation; components get the modality that they need."""
    texts = [name for name in sorted(set(backbone_of.values())) if load(name).card.modality == "text"]
    options = config.evaluation
    for client in benchmark.clients:
        name = backbone_of[client.client_id]
        reader = name if name in texts else (texts[0] if texts and options.others else None)
        if reader is not None and any(_has_pictures(task) for task in client.tasks):
            raise UserError(
                f"The backbone '{reader}' reads text only, but samples of client '{client.client_id}' have pictures; "
                + ("choose a vision-language backbone." if reader == name else "set evaluation.others=false.")
            )
        for component in parts.components:
            if component.needs.modality not in (None, load(name).card.modality):
                raise UserError(f"{type(component).__name__} needs {component.needs.modality} backbones.")
    if texts and options.unseen and any(_has_pictures(task) for task in benchmark.unseen):
        raise UserError(f"The backbone '{texts[0]}' reads text only, but unseen tasks have pictures.")


def _has_pictures(task: TaskData) -> bool:
    return any(sample.pictures for part in (task.train, task.validation, task.test) for sample in part)
