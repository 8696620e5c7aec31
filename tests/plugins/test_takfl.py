"""TAKFL on two tokenizers: task vectors, students that begin anew, lambdas, and what published code does instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.data import ClientData, FixedBenchmark, TaskData
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
from pfl_plugins.takfl.aggregator import Takfl
from pfl_plugins.takfl.config import Config

LLAMA, QWEN = "tiny-llava-llama-s", "tiny-llava-qwen-s"
SMALL = {"samples": 6, "lr": 0.01, "top_k": 16, "batch_size": 3}


def setup(*sets: str, public: bool = True) -> Setup:
    def client(name: str, backbone: str) -> ClientData:
        parts = (samples(name, 8), samples(f"{name}v", 2), samples(f"{name}t", 2))
        return ClientData(name, backbone, (TaskData(f"copy-{name}", "open-ended", "exact", *parts),))

    clients = (client("a", LLAMA), client("b", LLAMA), client("c", QWEN))
    sets = ("rounds=2", "local_steps=2", "adapter.r=2", "training.batch_size=2", "backbone_options.init=0", *sets)
    manager = PluginManager()
    given = {"public": samples("public", 8)} if public else {}
    config = Resolver(manager).resolve(Request(method="takfl", sets=list(sets)))
    return build(config, manager, FixedBenchmark("test", clients, "1", public_sets=given))


class Recorder(InProcessEngine):
    """Keeps what ran."""

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        self.seen = [*getattr(self, "seen", []), *tasks]
        return super().run(tasks)


@pytest.fixture(scope="module")
def place() -> tuple[Federation, Any]:
    """A federation whose clients have sent adapters with B not 0, and its worker."""
    chosen = setup()
    store = MemoryStore()
    fed = chosen.federation(store)
    return fed, chosen.worker(store)


def updates(fed: Federation, clients: str = "abc") -> Updates:
    items = []
    for number, client in enumerate(clients):
        backbone = fed.backbone_of[client]
        tensors = fed.adapter.initial(fed.load(backbone), "global", 0)
        generator = torch.Generator().manual_seed(ord(client))
        sent = {key: value + 0.05 * torch.randn(value.shape, generator=generator) for key, value in tensors.items()}
        items.append(Update(client, backbone, 8 + 8 * number, fed.store.put(sent), fed.store))
    return Updates(tuple(items))


def absorbed(place: tuple[Federation, Any], *, clients: str = "abc", **options: Any) -> tuple[ServerState, list[Task]]:
    fed, worker = place
    engine = Recorder(worker)
    rule = Takfl(Config(**{**SMALL, **options}))
    state = drive(rule.absorb(fed, ServerState({}), updates(fed, clients), 0), engine)
    return state, engine.seen


def group_average(fed: Federation, backbone: str) -> dict[str, Tensor]:
    from pfl_platform.adapters.surfaces import Keys

    group = [update for update in updates(fed) if update.backbone == backbone]
    return mean(group, sizes(group, examples=True), Keys("global/*"))


def test_task_vectors_are_not_zero_and_every_student_begins_anew(place: tuple[Federation, Any]) -> None:
    fed, worker = place
    state, tasks = absorbed(place)
    students = [task for task in tasks if task.phases]
    assert [task.actor for task in students] == [
        f"{student} from {teacher}" for teacher in fed.backbones for student in fed.backbones
    ]
    vectors: dict[str, list[dict[str, Tensor]]] = {LLAMA: [], QWEN: []}
    for task in students:
        assert task.state is not None
        start, average = fed.store.get(task.state), group_average(fed, task.backbone)
        assert all(torch.equal(start[key], value) for key, value in average.items())
        taught = fed.store.get(worker.execute(task).state)
        vectors[task.backbone].append({key: taught[key] - value for key, value in average.items()})
    for backbone, pair in vectors.items():
        assert all(any(bool(value.abs().max() > 1e-4) for value in vector.values()) for vector in pair)
        found = fed.store.get(state.tensors[backbone])
        for key, value in group_average(fed, backbone).items():  # lambda is 1/2 for each of two teachers
            torch.testing.assert_close(found[key], value + 0.5 * pair[0][key] + 0.5 * pair[1][key])
    norms = state.report["task_vector_norm"]
    assert all(norms[student][teacher] > 1e-3 for student in norms for teacher in norms)
    assert state.report["lambda"][LLAMA] == {LLAMA: 0.5, QWEN: 0.5}
    assert 0.0 < state.report["matched_tokens"][LLAMA][QWEN] <= state.report["matched_tokens"][LLAMA][LLAMA] == 1.0


def test_one_teacher_pass_per_client_and_never_a_second_backbone(place: tuple[Federation, Any]) -> None:
    fed, worker = place
    _, tasks = absorbed(place)
    assert [task.actor for task in tasks if not task.phases] == [
        *(f"teacher {client}" for name in fed.backbones for client in "abc" if fed.backbone_of[client] == name),
        *(f"{name} before" for name in fed.backbones),
    ]
    assert set(worker._hosts) <= {LLAMA, QWEN}
    assert all(not task.others for task in tasks)


def test_published_code_has_zero_task_vectors_and_does_not_begin_anew(place: tuple[Federation, Any]) -> None:
    fed, _ = place
    state, tasks = absorbed(place, official_zero_vectors=True, official_no_reset=True)
    assert set(state.report["task_vector_norm"][LLAMA].values()) == {0.0}
    for backbone in (LLAMA, QWEN):
        found = fed.store.get(state.tensors[backbone])
        assert all(torch.equal(found[key], value) for key, value in group_average(fed, backbone).items())
    students = [task for task in tasks if task.phases and task.backbone == LLAMA]
    assert students[0].state != students[1].state


def test_lambdas_are_given_or_chosen_on_held_out_samples(place: tuple[Federation, Any]) -> None:
    fed, _ = place
    fixed, _ = absorbed(place, lam={LLAMA: {LLAMA: 0.0, QWEN: 0.0}})
    found = fed.store.get(fixed.tensors[LLAMA])
    assert all(torch.equal(found[key], value) for key, value in group_average(fed, LLAMA).items())
    assert fixed.report["lambda"][QWEN] == {LLAMA: 0.5, QWEN: 0.5} or fixed.report["lambda"][QWEN] == {
        QWEN: 0.5,
        LLAMA: 0.5,
    }
    chosen, tasks = absorbed(place, choose="validated", validation=0.34)
    trials = [task.actor for task in tasks if "candidate" in task.actor]
    assert len(trials) == 2 * 3
    assert all(sum(row.values()) == pytest.approx(1.0) for row in chosen.report["lambda"].values())


def test_absent_prototypes_keep_what_they_had(place: tuple[Federation, Any]) -> None:
    fed, worker = place
    rule = Takfl(Config(**SMALL, self_weight=0.0))
    before = ServerState({QWEN: "here"})
    state = drive(rule.absorb(fed, before, updates(fed, "a"), 1), InProcessEngine(worker))
    assert state.tensors[QWEN] == "here"
    assert list(state.report["lambda"]) == [LLAMA]
    assert rule.reply(fed, ServerState({}), "a") == {}
    assert drive(rule.absorb(fed, before, Updates(()), 1), InProcessEngine(worker)) is before


@pytest.mark.parametrize(
    ("sets", "public", "sentence"),
    [
        ([], False, r"has no public set; name a folder or another benchmark that has one with --public"),
        (["aggregator.self_weights={tiny-llava-qwen-x: 1}"], True, r"name 'tiny-llava-qwen-x', which no client has"),
        (["aggregator.choose=validated", "public.size=1"], True, r"take more with --public-size"),
        (["objective=sft"], True, r"needs keys 'global/...'"),
    ],
)
def test_what_is_missing_is_said_before_round_0(sets: list[str], public: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        setup(*sets, public=public)
