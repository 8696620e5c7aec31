"""PerAda on two tokenizers: the pull to the received adapter, the distilled average, what is kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distilling_support import LLAMA, NO_PUBLIC_SET, QWEN, Place, group_average, place_of, set_up, updates
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.backbones import IGNORE
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ServerState, Updates
from pfl_platform.federation.rounds import client_task, drive, prepare
from pfl_platform.store.memory import MemoryStore
from pfl_plugins.ditto.objective import near
from pfl_plugins.perada import plugin
from pfl_plugins.perada.aggregator import PerAda
from pfl_plugins.perada.config import Config, ServerConfig

SMALL = {"samples": 8, "lr": 0.02, "top_k": 0, "batch_size": 3, "validation": 0.25, "checks": 2}
setup = partial(set_up, "perada")


@pytest.fixture(scope="module")
def place() -> Place:
    return place_of(setup())


def absorbed(place: Place, round_index: int = 0, clients: str = "abc", **options: Any) -> ServerState:
    fed, worker = place
    rule = PerAda(ServerConfig(**{**SMALL, **options}))
    return drive(rule.absorb(fed, ServerState({}), updates(fed, clients), round_index), InProcessEngine(worker))


def test_the_pull_is_lambda_times_the_squared_distance_to_what_was_received() -> None:
    params = {"local/x/A": torch.tensor([3.0, 1.0], requires_grad=True), "global/x/A": torch.tensor([9.0, 9.0])}
    refs = {"global/x/A": torch.tensor([1.0, 0.0])}  # the live global adapter has moved on; the anchor has not
    value = near(plugin.client(Config(lam=0.5)).lam)(params, refs)
    assert value is not None
    assert float(value.detach()) == pytest.approx(0.5 * (4 + 1))
    value.backward()
    assert params["local/x/A"].grad is not None
    assert params["local/x/A"].grad.tolist() == [2.0, 1.0]  # 2 lambda (v - w): no factor 1/2


def test_personal_adapters_stay_at_the_client_unless_published_code_is_asked_for() -> None:
    own, leaking = (plugin.pfl_make_objective("perada", options) for options in ({}, {"official_leak": True}))
    assert own is not None
    assert leaking is not None
    key = "local/layer0.q_proj/A"
    assert not any(key in share.keys for share in (*own.up, *own.down))
    assert any(key in share.keys for share in leaking.up)
    assert any(key in share.keys for share in leaking.down)
    assert own.mix == {"local": 1.0}


def test_both_adapters_train_and_a_strong_pull_holds_the_personal_one() -> None:
    moved = {}
    for lam in (0.0, 1e4):
        chosen = setup(f"objective.lam={lam}", "training.lr=0.01", "local_steps=6", "training.clip=0")
        store = MemoryStore()
        fed, worker = chosen.federation(store), chosen.worker(store)
        progress = drive(prepare(fed, chosen.parts), InProcessEngine(worker))
        before = store.get(progress.states["a"])
        after = store.get(worker.execute(client_task(fed, chosen.parts, progress, fed.clients[0], 0)).state)
        moved[lam] = {
            slot: float(sum((after[key] - before[key]).abs().sum() for key in Keys(f"{slot}/*").of(before)))
            for slot in ("local", "global")
        }
    assert moved[0.0]["local"] == pytest.approx(moved[0.0]["global"])  # without a pull they are the same training
    assert moved[1e4]["local"] < 0.7 * moved[0.0]["local"]
    assert moved[1e4]["global"] == pytest.approx(moved[0.0]["global"])


def distance(place: Place, params: dict[str, Tensor]) -> float:
    """KL(mean of the Llama clients || student) over all public samples, without the platform's distillation."""
    fed, worker = place
    host = worker.host(LLAMA)
    encoded = host.backbone.codec.encode(list(fed.public()))
    picked = encoded.labels[:, 1:] != IGNORE
    logits = []
    for tensors in (*(update.tensors() for update in updates(fed, "ab")), params):
        host.load(tensors)
        with torch.no_grad(), host.mixing({"global": 1.0}, encoded.inputs["attention_mask"]):
            logits.append(host.backbone.model(**encoded.inputs).logits[:, :-1][picked].float())
    teacher = torch.stack(logits[:-1]).mean(0).log_softmax(1)
    return float(functional.kl_div(logits[-1].log_softmax(1), teacher, log_target=True, reduction="batchmean"))


def test_the_average_comes_nearer_to_the_mean_of_its_clients(place: Place) -> None:
    fed, _ = place
    start = group_average(updates(fed), LLAMA)
    state = absorbed(place, teachers="backbone", epochs=4, keep="last")
    done = fed.store.get(state.tensors[LLAMA])
    assert done.keys() == start.keys()
    assert distance(place, done) < 0.8 * distance(place, start)


def test_the_best_state_on_held_out_samples_is_kept(place: Place) -> None:
    fed, _ = place
    state = absorbed(place)
    for backbone, told in state.report["distillation"].items():
        assert len(told["held_out"]) == 1 + 2
        assert told["kept"] == min(range(3), key=told["held_out"].__getitem__)
        assert 0.0 < told["matched_tokens"] <= 1.0
        assert fed.store.get(state.tensors[backbone]).keys() == group_average(updates(fed), backbone).keys()
    # Qwen's only client is its own average: its teacher is itself, and every step leads away.
    alone = absorbed(place, clients="c", teachers="backbone")
    told = alone.report["distillation"][QWEN]
    assert (told["kept"], told["held_out"][0]) == (0, pytest.approx(0.0, abs=1e-5))
    found = fed.store.get(alone.tensors[QWEN])
    assert all(torch.equal(found[key], value) for key, value in group_average(updates(fed), QWEN).items())


def test_a_distillation_in_parts_is_one_training(place: Place) -> None:
    whole, parted = (absorbed(place, keep="best", checks=checks) for checks in (1, 2))
    last = [state.report["distillation"][QWEN]["held_out"][-1] for state in (whole, parted)]
    assert last[0] == last[1]
    assert whole.report["distillation"][QWEN]["held_out"][0] == parted.report["distillation"][QWEN]["held_out"][0]


def test_later_rounds_only_average_and_absent_backbones_keep_what_they_had(place: Place) -> None:
    fed, worker = place
    state = absorbed(place, 1, rounds=1)
    assert state.report["distillation"] == {}
    found = fed.store.get(state.tensors[LLAMA])
    assert all(torch.equal(found[key], value) for key, value in group_average(updates(fed), LLAMA).items())
    rule = PerAda(ServerConfig(**SMALL))  # type: ignore[arg-type]
    before = ServerState({QWEN: "here"})
    after = drive(rule.absorb(fed, before, updates(fed, "a"), 0), InProcessEngine(worker))
    assert after.tensors[QWEN] == "here"
    assert dict(drive(rule.absorb(fed, before, Updates(()), 0), InProcessEngine(worker)).tensors) == {QWEN: "here"}


def test_a_federation_without_a_public_set_is_refused() -> None:
    with pytest.raises(UserError, match=NO_PUBLIC_SET):
        setup(public=False)
