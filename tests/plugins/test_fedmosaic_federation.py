"""FedMosaic inside the federation: sketch, alignment, replies and payload, on tiny random backbones of two
tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from federation_support import built, copying_client
from pfl_platform.adapters.surfaces import shared
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation, ServerState, Update, Updates
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.rounds import client_task, drive, prepare
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Cost, Outcome, Task
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.view import BatchView
from pfl_plugins.fedmosaic.config import Config, RelaConfig
from pfl_plugins.fedmosaic.equations import upload_values
from pfl_plugins.fedmosaic.objective import FedMosaic
from pfl_plugins.fedmosaic.rela import Rela
from pfl_plugins.fedmosaic.relevance import EMA, SKETCH, ClientGradient, projected

LLAMA, QWEN = "tiny-llava-llama-s", "tiny-llava-qwen-s"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))


def setup(*sets: str) -> Setup:
    clients = [copying_client(name, backbone) for name, backbone in (("a", LLAMA), ("b", LLAMA), ("c", QWEN))]
    quick = ("rounds=2", "local_steps=2", "adapter.r=4", "training.batch_size=2", "backbone_options.init=0")
    return built("fedmosaic", clients, [*quick, *sets], public=24)


def prepared(chosen: Setup) -> tuple[Federation, Any, Any]:
    store = MemoryStore()
    fed, worker = chosen.federation(store), chosen.worker(store)
    return fed, worker, drive(prepare(fed, chosen.parts), InProcessEngine(worker))


def frozen(fed: Federation) -> Mapping[str, Mapping[str, Tensor]]:
    return {name: fed.store.get(address) for name, address in fed.frozen.items()}


def test_the_sketch_is_the_gradient_of_the_last_layer() -> None:
    chosen = setup("aggregator.small_model=" + QWEN)
    fed, worker, _ = prepared(chosen)
    batch = fed.clients[0].tasks[0].train[:3]
    view = BatchView(worker.host, LLAMA, batch, step=0, rng=lambda *_: torch.Generator())
    statistic = ClientGradient(RelaConfig(keep=1.0, mu=0.0), QWEN, "gate", 0)
    with torch.no_grad():
        total, count = statistic.add(None, view)
    host = worker.host(QWEN)
    weight = host.backbone.module(host.backbone.last_linear).base.weight  # type: ignore[union-attr]
    weight.requires_grad_(True)
    encoded = host.backbone.codec.encode(batch)
    with host.mixing({}):
        logits = host.backbone.model(**encoded.inputs).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), encoded.labels[:, 1:].flatten(), ignore_index=-100
    )
    (expected,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    found = total.view_as(expected)
    assert count == 1
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_the_ema_and_the_noise_act_once_per_round() -> None:
    statistic = ClientGradient(RelaConfig(alpha=0.25, mu=0.0), "w", "gate", 0)
    acc = (torch.tensor([4.0, 8.0]), 2)  # the mean gradient is (2, 4)
    sent, kept = statistic.finish(acc, {}, lambda *_: torch.Generator())
    assert sent[SKETCH].tolist() == kept[EMA].tolist() == [2.0, 4.0]  # the first is copied
    sent, kept = statistic.finish(acc, {EMA: torch.tensor([0.0, 8.0])}, lambda *_: torch.Generator())
    assert kept[EMA].tolist() == [0.5, 7.0]  # 0.75 * old + 0.25 * new
    noisy = ClientGradient(RelaConfig(alpha=0.25, mu=1.0), "w", "gate", 0)
    sent, kept = noisy.finish(acc, {}, lambda *_: torch.Generator().manual_seed(0))
    assert kept[EMA].tolist() == [2.0, 4.0]  # the noise is not averaged into the EMA
    assert sent[SKETCH].tolist() != [2.0, 4.0]


def test_projections_keep_inner_products_of_equal_lengths() -> None:
    x, y = (torch.randn(500, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    z = x + 0.1 * y
    small = [projected(v, 400, 0) for v in (x, z)]
    assert float(torch.cosine_similarity(*small, dim=0)) > 0.9
    assert torch.equal(projected(x, 400, 0), small[0])


def test_alignment_makes_targets_read_what_the_pivot_reads() -> None:
    options = ["objective.alignment.lr=0.02", "objective.alignment.epochs=4", "objective.alignment.cache=false"]
    fed, worker, _ = prepared(setup(*options))
    start = {QWEN: fed.adapter.frozen(fed.load(QWEN), 0), LLAMA: fed.adapter.frozen(fed.load(LLAMA), 0)}
    pivot, target = fed.backbones
    done = frozen(fed)
    assert all(torch.equal(done[pivot][key], value) for key, value in start[pivot].items())
    for key, value in done[target].items():
        gram = value @ value.T if key.endswith("/A") else value.T @ value
        assert float((gram - torch.eye(4)).abs().max()) < 1e-4
        assert not torch.equal(value, start[target][key])
    before, after = (_distance(fed, worker, start[pivot], tensors) for tensors in (start[target], done[target]))
    assert after < 0.9 * before


def _distance(fed: Federation, worker: Any, pivot: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> float:
    """Mean of `||A_p h_p - A_t h_t||^2` over public text, sites and matched pieces."""
    from pfl_platform.adapters.host import FROZEN
    from pfl_plugins.fedmosaic.align import PIVOT, Matched

    small, large = fed.backbones
    sites = {
        name: [site for site in fed.adapter.sites(fed.load(name)) if site.scope == "all"] for name in fed.backbones
    }
    matched = Matched(small, tuple(zip(sites[small], sites[large], strict=True)), "spans")
    worker.host(large).load(target)
    refs = {key.replace(FROZEN, PIVOT, 1): value for key, value in pivot.items()}
    batch = fed.public()
    view = BatchView(worker.host, large, batch, step=0, rng=lambda *_: torch.Generator(), refs=refs)
    with torch.no_grad():
        return float(matched.a_loss(view).mean())


@pytest.mark.parametrize(("a", "b"), [("random", "cca"), ("l2", "random"), ("random", "random")])
def test_one_sided_alignment_leaves_the_other_factor_alone(a: str, b: str) -> None:
    fed, _, _ = prepared(setup(f"objective.alignment.a={a}", f"objective.alignment.b={b}", "public.size=8"))
    target = fed.backbones[1]
    start, done = fed.adapter.frozen(fed.load(target), 0), frozen(fed)[target]
    for key, value in start.items():
        unchanged = (a if key.endswith("/A") else b) == "random"
        assert torch.equal(done[key], value) == unchanged, key


@pytest.mark.parametrize(
    "option", ["b=official_whitening", "features=module", "tokens=answers", "penalty=official_columns"]
)
def test_variants_of_alignment_run_and_are_finite(option: str) -> None:
    fed, _, _ = prepared(setup(f"objective.alignment.{option}", "public.size=12"))
    assert all(bool(value.isfinite().all()) for tensors in frozen(fed).values() for value in tensors.values())


class Told(Observer):
    """Costs by actor."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        self.costs[task.actor] = outcome.cost


def test_alignment_is_cached_by_content_with_its_cost() -> None:
    """The second time no backbone is even loaded into the worker."""
    found = []
    for _ in range(2):
        chosen, store, told = setup("public.size=8"), MemoryStore(), Told()
        fed, worker = chosen.federation(store), chosen.worker(store)
        if found:
            worker = Worker(replace(worker.place, load=lambda name: pytest.fail(f"{name} was loaded")))
        drive(prepare(fed, chosen.parts), InProcessEngine(worker, [told]))
        found.append((frozen(fed), told.costs))
    (first, costs), (second, again) = found
    for name, tensors in second.items():
        assert all(torch.equal(value, first[name][key]) for key, value in tensors.items())
    assert costs == again
    assert next(iter(costs.values())).flops > 0


def test_upload_is_the_formula_and_private_keys_stay() -> None:
    chosen = setup("public.size=4")
    fed, worker, progress = prepared(chosen)
    for client in fed.clients:
        task = client_task(fed, chosen.parts, progress, client, 0)
        outcome = worker.execute(task)
        sent = fed.store.get(outcome.sent)
        backbone = fed.load(task.backbone)
        sites = fed.adapter.sites(backbone)
        conventional = [(site.in_features, site.out_features) for site in sites if site.scope == "backbone"]
        pq = sum(site.scope == "all" for site in sites)
        small = fed.load(fed.backbones[0])
        rows, columns = small.module(small.last_linear).base.weight.shape  # type: ignore[union-attr]
        gradient = int(0.4 * rows * columns)
        assert outcome.cost.up_payload == 4 * upload_values(conventional, 4, pq, gradient)
        assert outcome.cost.up_wire > outcome.cost.up_payload
        assert {key.split("/")[0] for key in sent} == {"local", "rela"}
        private = fed.store.get(outcome.state)
        assert {"gate", "moments", "global"} <= {key.split("/")[0] for key in private}


def test_equal_weights_need_no_sketches() -> None:
    chosen = setup("aggregator.weights=uniform", "public.size=4")
    fed, worker, progress = prepared(chosen)
    task = client_task(fed, chosen.parts, progress, fed.clients[0], 0)
    assert (task.others, task.statistics) == ((), ())
    sent = fed.store.get(worker.execute(task).sent)
    assert {key.split("/")[0] for key in sent} == {"local"}


def federation_of(chosen: Setup) -> tuple[Federation, Updates]:
    """Three hand-made updates: a and b on one backbone, c on another; every value of client k is k + 1."""
    fed = chosen.federation(MemoryStore())
    items = []
    sketches = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}
    for k, client in enumerate(fed.clients):
        tensors = {
            "local/block0.q/P": torch.full((1, 1), k + 1.0),
            "local/layer0.q/A": torch.full((1, 2 + (k == 2)), k + 1.0),
            SKETCH: torch.tensor(sketches[client.client_id]),
        }
        items.append(Update(client.client_id, client.backbone, 8, fed.store.put(tensors), fed.store))
    return fed, Updates(tuple(items))


def replies(config: RelaConfig, fed: Federation, updates: Updates) -> dict[str, dict[str, Tensor]]:
    server = Rela(config)
    state = drive(server.absorb(fed, ServerState(), updates, 0), None)  # type: ignore[arg-type]
    return {client.client_id: server.reply(fed, state, client.client_id) for client in fed.clients}


def test_replies_by_hand() -> None:
    # cos(a, b) = 1, cos(a, c) = 0; tau = 0.5: weights e^2, e^2, 1 for a, so P = (e^2 * 1 + e^2 * 2 + 3) / (2 e^2 + 1).
    fed, updates = federation_of(setup())
    found = replies(RelaConfig(), fed, updates)
    e2 = 7.38905609893065
    assert found["a"]["global/block0.q/P"].item() == pytest.approx((3 * e2 + 3) / (2 * e2 + 1))
    assert found["c"]["global/block0.q/P"].item() == pytest.approx((1 + 2 + 3 * e2) / (2 + e2))
    # Conventional layers: a and b weigh the same, so 1.5; c is alone on its backbone, is sent none and takes its own.
    assert found["a"]["global/layer0.q/A"].tolist() == [[1.5, 1.5]]
    assert set(found["c"]) == {"global/block0.q/P"}
    own = torch.full((1, 3), 7.0)
    state = FedMosaic(Config()).receive({"local/layer0.q/A": own, "global/layer0.q/A": 0 * own}, found["c"])
    assert torch.equal(state["global/layer0.q/A"], own)


def test_replies_without_self_and_with_uniform_weights() -> None:
    fed, updates = federation_of(setup())
    found = replies(RelaConfig(weights="uniform", include_self=False), fed, updates)
    assert found["a"]["global/block0.q/P"].item() == pytest.approx(2.5)  # (2 + 3) / 2
    assert found["a"]["global/layer0.q/A"].tolist() == [[2.0, 2.0]]  # b alone
    found = replies(RelaConfig(weights="uniform"), fed, updates)
    assert all(reply["global/block0.q/P"].item() == pytest.approx(2.0) for reply in found.values())


def test_a_client_that_was_absent_stays_in_the_sums() -> None:
    fed, updates = federation_of(setup())
    server = Rela(RelaConfig(weights="uniform"))
    state = drive(server.absorb(fed, ServerState(), updates, 0), None)  # type: ignore[arg-type]
    state = drive(server.absorb(fed, state, Updates(updates.items[:1]), 1), None)  # type: ignore[arg-type]
    assert server.reply(fed, state, "a")["global/block0.q/P"].item() == pytest.approx(2.0)
    assert server.reply(fed, ServerState(), "a") == {}


def test_an_aggregator_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"aggregator 'rela' needs keys 'local/\.\.\.', but the objective 'fedit' sends"
    ):
        setup("objective.name=fedit")


def test_an_objective_that_sends_nothing_is_refused_by_an_averaging_server() -> None:
    with pytest.raises(UserError, match="needs updates, but the objective 'sft' sends nothing"):
        setup("objective.name=sft", "aggregator.name=fedavg")


def test_local_keys_of_both_scopes_are_told_apart_by_name() -> None:
    assert "local/block0.self_attn.q_proj/P" in shared("local", "all")
    assert "local/layer0.self_attn.q_proj/A" not in shared("local", "all")
