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
from pfl_platform.engines.batches import clients_of
from pfl_platform.engines.ranks.place import SPREAD
from pfl_platform.engines.worker import Worker, Workplace
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.generate import Judge
from pfl_platform.evaluation.surfaces import Cell, Metric, Split
from pfl_platform.features.shelf import Keeper, usual_folder
from pfl_platform.federation.cells import items_of
from pfl_platform.federation.checks import (
    check_clients,
    check_components,
    check_equal_adapters,
    check_modality,
    check_others,
    check_rates,
    check_returns,
)
from pfl_platform.federation.components import Federation
from pfl_platform.federation.own_adapters import ByHost, adapters_of_clients, twin
from pfl_platform.federation.rounds import OWN, Parts, first_params
from pfl_platform.federation.rows import check_public, check_rows
from pfl_platform.federation.starting import start_of
from pfl_platform.federation.tasks import Store
from pfl_platform.federation.together import Alone, Together
from pfl_platform.plugins import PluginManager, available, default
from pfl_platform.recipes import check_client_names
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.driver import Driver, TorchDriver


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
    own_hosts: Mapping[str, str]
    own_adapters: Mapping[str, AdapterType]

    def federation(self, store: Store, together: Together | None = None) -> Federation:
        return Federation(
            self.config,
            self.benchmark,
            self.adapter,
            self.backbone_of,
            store,
            self.load,
            self.public,
            own_hosts=self.own_hosts,
            own_adapters=self.own_adapters,
            together=together or Alone(),
        )

    def worker(self, store: Store, driver: Driver | None = None) -> Worker:
        """The worker of this process."""
        config = self.config
        objective = self.parts.objective
        rows = config.training.micro_batch or config.training.batch_size
        asked = config.evaluation
        judge = Judge(self.metrics, asked.batch_size, asked.max_new_tokens, asked.choose)
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
                driver=driver or TorchDriver(),
                batch=clients_of(config.engine.batch_clients, rows),
                compiler=config.engine.compile,
                keeper=Keeper(config.features.memory_mb << 20, config.features.disk_mb << 20, usual_folder()),
            )
        )

    def _items(self, cell: Cell, task: TaskData, actor: str, split: Split) -> Sequence[Sample]:
        own = cell.owner == actor or actor.startswith(OWN)
        return items_of(self.config.evaluation, task, split, own=own)


def build(
    config: RunConfig,
    plugins: PluginManager,
    benchmark: Benchmark | None = None,
    *,
    shapes: bool = False,
    before_loading: Callable[[Sequence[str]], None] = lambda names: None,
) -> Setup:
    """Makes and checks everything. Raises `UserError` with one sentence for whatever does not fit.

    benchmark: used instead of the one that the configuration names. shapes: backbones have shapes and no weights, for
    plans. before_loading: told the names of the clients' backbones before the first is loaded.
    """
    options = backbone_options(config) | ({"device": "meta"} if shapes else {})

    def made(kind: str, choice: Choice) -> Any:
        return plugins.make(kind, choice.name, choice.options)

    if benchmark is None:
        benchmark = plugins.make("benchmark", config.benchmark.name, config.benchmark.options)
    check_clients(benchmark)
    check_client_names(config, benchmark)
    adapter: AdapterType = made("adapter", config.adapter)
    parts = Parts(
        objective=made("objective", config.objective),
        aggregator=made("aggregator", config.aggregator),
        personalizer=made("personalizer", config.personalizer) if config.personalizer else None,
        postprocessors=tuple(made("postprocessor", choice) for choice in config.postprocessors),
    )
    check_components(config, parts)
    backbone_of = assign(config, benchmark)
    before_loading(sorted(set(backbone_of.values())))
    loaded: dict[str, Backbone] = {}

    def load(name: str) -> Backbone:
        if name not in loaded:
            with torch.random.fork_rng(devices=[]):  # libraries draw first weights, which files replace
                loaded[name] = plugins.make("backbone", name, options)
        return loaded[name]

    # A backbone may be known by several names; it is loaded, and averaged, as one.
    backbone_of = {client: load(name).name for client, name in backbone_of.items()}
    for name in sorted(set(backbone_of.values())):
        loaded.setdefault(name, load(name))
        adapter.check(load(name))
    own_hosts, own_adapters = adapters_of_clients(
        config, backbone_of, lambda options: made("adapter", Choice(name=config.adapter.name, options=dict(options)))
    )
    for client_id, host in own_hosts.items():
        loaded.setdefault(host, twin(load(backbone_of[client_id]), host))
        own_adapters[client_id].check(load(host))
    if own_hosts:
        adapter = ByHost(adapter, {host: own_adapters[client_id] for client_id, host in own_hosts.items()})
    check_modality(config, benchmark, backbone_of, load, parts)
    names = {task.metric for client in benchmark.clients for task in client.tasks}
    names |= {task.metric for task in benchmark.unseen}
    if unused := next((name for name in config.metrics if name not in names), None):
        raise UserError(
            f"The setting 'metrics' has options of '{unused}', by which no task is scored." + nearest(unused, names)
        )
    given = {name: choice.options for name, choice in config.metrics.items()}
    metrics: dict[str, Metric] = {name: plugins.make("metric", name, given.get(name, {})) for name in sorted(names)}

    @cache
    def public() -> Sequence[Sample]:
        samples = public_set(config, benchmark, plugins)
        readers = {*backbone_of.values(), *parts.others(fed)}
        check_public([load(name) for name in sorted(readers)], samples)
        return samples

    setup = Setup(config, benchmark, adapter, parts, backbone_of, load, metrics, public, own_hosts, own_adapters)
    fed = setup.federation(MemoryStore())
    for name in parts.others(fed):
        adapter.check(load(name))
    check_equal_adapters(fed, parts)
    check_returns(fed, parts)
    check_others(fed, parts)
    for component in parts.components:
        component.check(fed)
    check_rates(fed, parts)
    check_rows(fed, parts)
    if (start := start_of(fed)) is not None:
        for client in benchmark.clients:
            first_params(fed, parts, client, start)
    if config.public.name is not None:
        public()  # whether or not a component reads it, a name that was given has to be right
    return setup


def public_set(config: RunConfig, benchmark: Benchmark, plugins: PluginManager) -> Sequence[Sample]:
    """One of the benchmark's public sets, or that of another benchmark, a folder or a file that was named.

    Whatever is not the benchmark's own may hold what some client has too; such samples are left out.
    """
    name, size, seed = config.public.name, config.public.size, config.seed
    if name is not None and name in available("benchmark"):
        reader: Benchmark = plugins.make("benchmark", name, {})
    elif name is None or not Path(name).is_absolute():
        return benchmark.public(name, size, seed)
    elif not Path(name).exists():
        raise UserError(f"The public set {name} does not exist.")
    else:
        reader = plugins.make("benchmark", default("benchmark-from-path").name, {"public": name})
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
    device = device_of(config)
    if config.engine.name == "deepspeed" and config.engine.zero == SPREAD and device != "meta":
        device = "cpu"  # from where its blocks are spread over the ranks' devices, one by one
    if device == "meta":
        raise UserError("The device 'meta' holds shapes only, so nothing can be trained there; it is for planning.")
    return {"dtype": config.engine.dtype, "device": device, **config.backbone_options}


def device_of(config: RunConfig) -> str:
    """The device of a run by name; `auto` is settled."""
    device = config.engine.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def assign(config: RunConfig, benchmark: Benchmark) -> dict[str, str]:
    """The backbone of each client: by id, else by '*', else what the benchmark proposes."""
    given = config.backbones
    return {
        client.client_id: given.get(client.client_id, given.get("*", client.backbone)) for client in benchmark.clients
    }
