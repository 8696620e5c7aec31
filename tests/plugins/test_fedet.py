"""Fed-ET on two tokenizers: consensus and diversity on numbers that can be redone, the server's model, the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.data import ClientData, FixedBenchmark, TaskData
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.targets import Teacher
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation, ServerState, Update, Updates
from pfl_platform.federation.groups import mean, sizes
from pfl_platform.federation.rounds import drive
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing.bench import samples
from pfl_plugins.fedet.aggregator import SERVER, FedET
from pfl_plugins.fedet.config import Config
from pfl_plugins.fedet.equations import consensus, disagreeing, diversity

LLAMA, QWEN = "tiny-llava-llama-s", "tiny-llava-qwen-s"
SMALL = {"samples": 6, "lr": 0.01, "top_k": 16, "batch_size": 3, "epochs": 2}


def teacher(probs: list[list[float]], weights: list[float]) -> Teacher:
    logp = torch.tensor(probs).log()
    count = torch.tensor([len(probs)])
    return Teacher(Predicted(count, torch.zeros(1), logp, None, None), weights=torch.tensor(weights))


def test_the_consensus_is_weighted_and_those_who_disagree_are_heard() -> None:
    sure, unsure = teacher([[0.9, 0.1], [0.9, 0.1]], [3.0, 3.0]), teacher([[0.2, 0.8], [0.6, 0.4]], [1.0, 9.0])
    counts = torch.tensor([2])
    agreed = consensus([sure, unsure], counts, 2)
    # First token: log-odds 0.75 ln 9 + 0.25 ln 0.25 > 0; second: both say 0.
    assert agreed.ids is not None
    assert agreed.ids.tolist() == [[0], [0]]
    assert agreed.probs.tolist() == [[1.0], [1.0]]
    heavy = consensus([sure, teacher([[0.1, 0.9], [0.6, 0.4]], [4.0, 1.0])], counts, 2)
    assert heavy.ids is not None
    assert heavy.ids.tolist() == [[1], [0]]
    assert disagreeing(unsure, agreed.ids[:, 0]).places.tolist() == [0, -1]  # type: ignore[union-attr]
    diverse, where = diversity([sure, unsure], agreed, 2, 0)
    assert where.tolist() == [1.0, 0.0]
    assert diverse.probs[0].tolist() == pytest.approx([0.2, 0.8])
    assert diverse.known.tolist() == [True, True]


def setup(*sets: str, public: bool = True) -> Setup:
    def client(name: str, backbone: str) -> ClientData:
        parts = (samples(name, 8), samples(f"{name}v", 2), samples(f"{name}t", 2))
        return ClientData(name, backbone, (TaskData(f"copy-{name}", "open-ended", "exact", *parts),))

    clients = (client("a", LLAMA), client("b", LLAMA), client("c", QWEN))
    sets = ("rounds=2", "local_steps=2", "adapter.r=2", "training.batch_size=2", "backbone_options.init=0", *sets)
    manager = PluginManager()
    given = {"public": samples("public", 8)} if public else {}
    config = Resolver(manager).resolve(Request(method="fedet", sets=list(sets)))
    return build(config, manager, FixedBenchmark("test", clients, "1", public_sets=given))


class Recorder(InProcessEngine):
    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        self.seen = [*getattr(self, "seen", []), *tasks]
        return super().run(tasks)


@pytest.fixture(scope="module")
def place() -> tuple[Federation, Any]:
    chosen = setup()
    store = MemoryStore()
    return chosen.federation(store), chosen.worker(store)


def updates(fed: Federation, clients: str = "abc") -> Updates:
    items = []
    for client in clients:
        backbone = fed.backbone_of[client]
        tensors = fed.adapter.initial(fed.load(backbone), "global", 0)
        generator = torch.Generator().manual_seed(ord(client))
        sent = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in tensors.items()}
        items.append(Update(client, backbone, 8, fed.store.put(sent), fed.store))
    return Updates(tuple(items))


def group_average(fed: Federation, backbone: str) -> dict[str, Tensor]:
    group = [item for item in updates(fed) if item.backbone == backbone]
    return mean(group, sizes(group, examples=False), Keys("*"))


def absorbed(
    place: tuple[Federation, Any], state: ServerState | None = None, clients: str = "abc", **options: Any
) -> tuple[ServerState, list[Task]]:
    fed, worker = place
    engine = Recorder(worker)
    rule = FedET(Config(**{**SMALL, **options}))
    found = drive(rule.absorb(fed, state or ServerState(), updates(fed, clients), 0), engine)
    return found, getattr(engine, "seen", [])


def changed(fed: Federation, address: str, tensors: Mapping[str, Tensor]) -> bool:
    found = fed.store.get(address)
    assert found.keys() == tensors.keys()
    return any(not torch.equal(found[key], value) for key, value in tensors.items())


def test_the_server_model_learns_stays_and_teaches_the_averages(place: tuple[Federation, Any]) -> None:
    fed, _ = place
    first, tasks = absorbed(place)
    assert [task.actor for task in tasks if task.phases] == [SERVER, *(f"average of {name}" for name in fed.backbones)]
    largest = fed.backbones[-1]
    assert next(task for task in tasks if task.actor == SERVER).backbone == largest
    assert changed(fed, first.tensors[SERVER], fed.adapter.initial(fed.load(largest), "global", fed.seed))
    assert all(changed(fed, first.tensors[name], group_average(fed, name)) for name in fed.backbones)
    assert 0.0 < first.report["matched_tokens"] <= 1.0
    second, again = absorbed(place, first, clients="a")
    assert next(task for task in again if task.actor == SERVER).state == first.tensors[SERVER]
    assert second.tensors[QWEN] == first.tensors[QWEN]  # nobody of it took part
    assert second.tensors[LLAMA] != first.tensors[LLAMA]


def test_the_group_average_alone_trains_nothing_and_needs_no_public_set(place: tuple[Federation, Any]) -> None:
    fed, _ = place
    found, tasks = absorbed(place, server="group_average")
    assert tasks == []
    assert sorted(found.tensors) == sorted(fed.backbones)
    assert not any(changed(fed, found.tensors[name], group_average(fed, name)) for name in fed.backbones)
    setup("aggregator.server=group_average", public=False)
    with pytest.raises(
        UserError, match=r"has no public set; name a folder or another benchmark that has one with --public"
    ):
        setup(public=False)


def test_without_a_way_back_clients_get_their_average(place: tuple[Federation, Any]) -> None:
    fed, _ = place
    found, tasks = absorbed(place, back="none", diversity=0.0)
    assert [task.actor for task in tasks if task.phases] == [SERVER]
    assert not any(changed(fed, found.tensors[name], group_average(fed, name)) for name in fed.backbones)


def test_the_server_may_have_a_backbone_that_no_client_has() -> None:
    chosen = setup("aggregator.server_model=tiny-llava-llama-m")
    assert chosen.parts.others(chosen.federation(MemoryStore())) == ("tiny-llava-llama-m",)
    with pytest.raises(UserError, match=r"no backbone called 'tiny-llava-lama-m'"):
        setup("aggregator.server_model=tiny-llava-lama-m")
