"""TAKFL on two tokenizers: task vectors, students that begin anew, lambdas, and what published code does instead."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from distilling_support import LLAMA, NO_PUBLIC_SET, QWEN, Place, Recorder, group_average, place_of, set_up, updates
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation, ServerState, Updates
from pfl_platform.federation.rounds import drive
from pfl_platform.federation.tasks import Task
from pfl_plugins.takfl.aggregator import Takfl
from pfl_plugins.takfl.config import Config

SMALL = {"samples": 6, "lr": 0.01, "top_k": 16, "batch_size": 3}
setup = partial(set_up, "takfl")
sent = partial(updates, noise=0.05, more=8)


@pytest.fixture(scope="module")
def place() -> Place:
    return place_of(setup())


def absorbed(place: Place, *, clients: str = "abc", **options: Any) -> tuple[ServerState, list[Task]]:
    fed, worker = place
    engine = Recorder(worker)
    rule = Takfl(Config(**{**SMALL, **options}))
    state = drive(rule.absorb(fed, ServerState({}), sent(fed, clients), 0), engine)
    return state, engine.seen


def average(fed: Federation, backbone: str) -> dict[str, Tensor]:
    return group_average(sent(fed), backbone, examples=True)


def test_task_vectors_are_not_zero_and_every_student_begins_anew(place: Place) -> None:
    fed, worker = place
    state, tasks = absorbed(place)
    students = [task for task in tasks if task.phases]
    assert [task.actor for task in students] == [
        f"{student} from {teacher}" for teacher in fed.backbones for student in fed.backbones
    ]
    vectors: dict[str, list[dict[str, Tensor]]] = {LLAMA: [], QWEN: []}
    for task in students:
        assert task.state is not None
        start, mean = fed.store.get(task.state), average(fed, task.backbone)
        assert all(torch.equal(start[key], value) for key, value in mean.items())
        taught = fed.store.get(worker.execute(task).state)
        vectors[task.backbone].append({key: taught[key] - value for key, value in mean.items()})
    for backbone, pair in vectors.items():
        assert all(any(bool(value.abs().max() > 1e-4) for value in vector.values()) for vector in pair)
        found = fed.store.get(state.tensors[backbone])
        for key, value in average(fed, backbone).items():  # lambda is 1/2 for each of two teachers
            torch.testing.assert_close(found[key], value + 0.5 * pair[0][key] + 0.5 * pair[1][key])
    norms = state.report["task_vector_norm"]
    assert all(norms[student][teacher] > 1e-3 for student in norms for teacher in norms)
    assert state.report["lambda"][LLAMA] == {LLAMA: 0.5, QWEN: 0.5}
    assert all(sum(row.values()) == pytest.approx(1.0) for row in state.report["weights"].values())
    assert set(state.report["weights"]) == {client.client_id for client in fed.clients}
    assert 0.0 < state.report["matched_tokens"][LLAMA][QWEN] <= state.report["matched_tokens"][LLAMA][LLAMA] == 1.0


def test_one_teacher_pass_per_client_and_never_a_second_backbone(place: Place) -> None:
    fed, worker = place
    _, tasks = absorbed(place)
    assert [task.actor for task in tasks if not task.phases] == [
        *(f"teacher {client}" for name in fed.backbones for client in "abc" if fed.backbone_of[client] == name),
        *(f"{name} before" for name in fed.backbones),
    ]
    assert set(worker._hosts) <= {LLAMA, QWEN}
    assert all(not task.others for task in tasks)


def test_published_code_has_zero_task_vectors_and_does_not_begin_anew(place: Place) -> None:
    fed, _ = place
    state, tasks = absorbed(place, official_zero_vectors=True, official_no_reset=True)
    assert set(state.report["task_vector_norm"][LLAMA].values()) == {0.0}
    for backbone in (LLAMA, QWEN):
        found = fed.store.get(state.tensors[backbone])
        assert all(torch.equal(found[key], value) for key, value in average(fed, backbone).items())
    students = [task for task in tasks if task.phases and task.backbone == LLAMA]
    assert students[0].state != students[1].state


def test_lambdas_are_given_or_chosen_on_held_out_samples(place: Place) -> None:
    fed, _ = place
    fixed, _ = absorbed(place, lam={LLAMA: {LLAMA: 0.0, QWEN: 0.0}})
    found = fed.store.get(fixed.tensors[LLAMA])
    assert all(torch.equal(found[key], value) for key, value in average(fed, LLAMA).items())
    assert fixed.report["lambda"][QWEN] == {LLAMA: 0.5, QWEN: 0.5} or fixed.report["lambda"][QWEN] == {
        QWEN: 0.5,
        LLAMA: 0.5,
    }
    chosen, tasks = absorbed(place, choose="validated", validation=0.34)
    trials = [task.actor for task in tasks if "candidate" in task.actor]
    assert len(trials) == 2 * 3
    assert all(sum(row.values()) == pytest.approx(1.0) for row in chosen.report["lambda"].values())


def test_absent_prototypes_keep_what_they_had(place: Place) -> None:
    fed, worker = place
    rule = Takfl(Config(**SMALL, self_weight=0.0))
    before = ServerState({QWEN: "here"})
    state = drive(rule.absorb(fed, before, sent(fed, "a"), 1), InProcessEngine(worker))
    assert state.tensors[QWEN] == "here"
    assert list(state.report["lambda"]) == [LLAMA]
    assert rule.reply(fed, ServerState({}), "a") == {}
    assert drive(rule.absorb(fed, before, Updates(()), 1), InProcessEngine(worker)) is before


@pytest.mark.parametrize(
    ("sets", "public", "sentence"),
    [
        ([], False, NO_PUBLIC_SET),
        (["aggregator.self_weights={tiny-llava-qwen-x: 1}"], True, r"name 'tiny-llava-qwen-x', which no client has"),
        (["aggregator.choose=validated", "public.size=1"], True, r"take more with --public-size"),
        (["objective=sft"], True, r"needs keys 'global/...'"),
    ],
)
def test_what_is_missing_is_said_before_round_0(sets: list[str], public: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        setup(*sets, public=public)
