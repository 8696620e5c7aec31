"""Fed-ET on two tokenizers: consensus and diversity on numbers that can be redone, the server's model, the way back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from distilling_support import LLAMA, NO_PUBLIC_SET, QWEN, Place, Recorder, group_average, place_of, set_up, updates
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.targets import Teacher
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation, ServerState
from pfl_platform.federation.rounds import drive
from pfl_platform.federation.tasks import Task
from pfl_platform.store.memory import MemoryStore
from pfl_plugins.fedet.aggregator import SERVER, FedET
from pfl_plugins.fedet.config import Config
from pfl_plugins.fedet.equations import consensus, disagreeing, diversity

SMALL = {"samples": 6, "lr": 0.01, "top_k": 16, "batch_size": 3, "epochs": 2}
setup = partial(set_up, "fedet")


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


@pytest.fixture(scope="module")
def place() -> Place:
    return place_of(setup())


def absorbed(
    place: Place, state: ServerState | None = None, clients: str = "abc", **options: Any
) -> tuple[ServerState, list[Task]]:
    fed, worker = place
    engine = Recorder(worker)
    rule = FedET(Config(**{**SMALL, **options}))
    found = drive(rule.absorb(fed, state or ServerState(), updates(fed, clients), 0), engine)
    return found, engine.seen


def changed(fed: Federation, address: str, tensors: Mapping[str, Tensor]) -> bool:
    found = fed.store.get(address)
    assert found.keys() == tensors.keys()
    return any(not torch.equal(found[key], value) for key, value in tensors.items())


def test_the_server_model_learns_stays_and_teaches_the_averages(place: Place) -> None:
    fed, _ = place
    first, tasks = absorbed(place)
    assert [task.actor for task in tasks if task.phases] == [SERVER, *(f"average of {name}" for name in fed.backbones)]
    largest = fed.backbones[-1]
    assert next(task for task in tasks if task.actor == SERVER).backbone == largest
    assert changed(fed, first.tensors[SERVER], fed.adapter.initial(fed.load(largest), "global", fed.seed))
    assert all(changed(fed, first.tensors[name], group_average(updates(fed), name)) for name in fed.backbones)
    assert 0.0 < first.report["matched_tokens"] <= 1.0
    second, again = absorbed(place, first, clients="a")
    assert next(task for task in again if task.actor == SERVER).state == first.tensors[SERVER]
    assert second.tensors[QWEN] == first.tensors[QWEN]  # nobody of it took part
    assert second.tensors[LLAMA] != first.tensors[LLAMA]


def test_the_group_average_alone_trains_nothing_and_needs_no_public_set(place: Place) -> None:
    fed, _ = place
    found, tasks = absorbed(place, server="group_average")
    assert tasks == []
    assert sorted(found.tensors) == sorted(fed.backbones)
    assert not any(changed(fed, found.tensors[name], group_average(updates(fed), name)) for name in fed.backbones)
    setup("aggregator.server=group_average", public=False)
    with pytest.raises(UserError, match=NO_PUBLIC_SET):
        setup(public=False)


def test_without_a_way_back_clients_get_their_average(place: Place) -> None:
    fed, _ = place
    found, tasks = absorbed(place, back="none", diversity=0.0)
    assert [task.actor for task in tasks if task.phases] == [SERVER]
    assert not any(changed(fed, found.tensors[name], group_average(updates(fed), name)) for name in fed.backbones)


def test_the_server_may_have_a_backbone_that_no_client_has() -> None:
    chosen = setup("aggregator.server_model=tiny-llava-llama-m")
    assert chosen.parts.others(chosen.federation(MemoryStore())) == ("tiny-llava-llama-m",)
    with pytest.raises(UserError, match=r"no backbone called 'tiny-llava-lama-m'"):
        setup("aggregator.server_model=tiny-llava-lama-m")
