"""The federated side of the merging methods: updates in, replies out, reports, statistics, and whole runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging_support import best
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.config import ClientOptions
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.components import Federation, ServerState, Update, Updates
from pfl_platform.federation.rounds import Parts, context, drive
from pfl_platform.federation.setup import Setup, build
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_plugins.merging.aggregator import MergingAggregator
from pfl_plugins.merging.updates import deltas_of

BACKBONES = ("tiny-llama-s", "tiny-llama-m")
NAMES = ["flexlora", "task-arithmetic", "ties", "dare", "dare-ties", "iso-c"]
NAMES += ["knots", "knots-ties", "knots-iso-c", "regmean", "fisher", "emr"]
manager = PluginManager()


def bench(folder: Path, *settings: str, name: str = "flexlora") -> Bench:
    return Bench("fedit", folder, BACKBONES, ["backbone_options.init=0", f"aggregator.name={name}", *settings])


def built(folder: Path, **options: Any) -> Setup:
    """The kit's three clients, b with options of its own."""
    made = bench(folder, 'adapter.options.targets=["q_proj","k_proj","v_proj","down_proj"]')
    config = made.config().model_copy(update={"clients": {"b": ClientOptions(adapter=options)}})
    return build(config, made.manager, made.benchmark())


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Clients a and b on one backbone with adapters of rank 4 and 2, c on the other."""
    return built(tmp_path_factory.mktemp("setup"), r=2, scale=0.5)


@pytest.fixture
def fed(setup: Setup) -> Federation:
    return setup.federation(MemoryStore())


def aggregator(name: str, **options: Any) -> MergingAggregator:
    made = manager.make("aggregator", name, options)
    assert isinstance(made, MergingAggregator)
    return made


def trained(fed: Federation, client: str, seed: int = 0) -> dict[str, Tensor]:
    """An update with B that is not zero, and statistics beside it."""
    rng = torch_rng("trained", client, seed)
    start = fed.adapter_of(client).initial(fed.load(fed.host_of(client)), "global", 0)
    found = {key: value + 0.1 * torch.randn(value.shape, generator=rng) for key, value in start.items()}
    extra = {f"fisher/{key}": torch.rand(value.shape, generator=rng) for key, value in found.items()}
    for key, value in start.items():
        if key.endswith("/A"):
            x = torch.randn(50, value.shape[1], generator=rng)
            extra[f"gram/{key.split('/')[1]}"] = x.T @ x / 50
    return {**found, **extra, "global/note/bias": torch.randn(3, generator=rng)}


def update(fed: Federation, client: str, tensors: Mapping[str, Tensor] | None = None, examples: int = 1) -> Update:
    """Of a method that asks for no statistics."""
    found = trained(fed, client) if tensors is None else tensors
    found = {key: value for key, value in found.items() if key.startswith("global/")}
    return Update(client, fed.backbone_of[client], examples, fed.store.put(found), fed.store)


def answer(fed: Federation, made: MergingAggregator, client: str, examples: int = 1) -> Update:
    """With the statistics that an aggregator asks for, and no others."""
    asked = Keys("global/*", *(pattern for share in made.asks for pattern in share.keys.patterns))
    return Update(client, fed.backbone_of[client], examples, fed.store.put(asked.of(trained(fed, client))), fed.store)


def absorbed(
    fed: Federation, made: MergingAggregator, *updates: Update, state: ServerState | None = None, turn: int = 0
) -> ServerState:
    program = made.absorb(fed, state or ServerState(), Updates(updates), turn)
    return drive(program, None)  # type: ignore[arg-type]  # no method of these yields a task


def dense(fed: Federation, client: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    factors = {key: value for key, value in tensors.items() if key.startswith("global/layer")}
    scale = float(fed.adapter_of(client).signature()["scale"])
    return {module: delta.dense(torch.float64) for module, delta in deltas_of(factors, scale, client).items()}


def test_each_client_gets_the_mean_in_its_own_rank_and_scale(fed: Federation) -> None:
    made = aggregator("flexlora")
    state = absorbed(fed, made, update(fed, "a", examples=3), update(fed, "b", examples=1), update(fed, "c"))
    own = {client: dense(fed, client, trained(fed, client)) for client in "abc"}
    for client, rank in (("a", 4), ("b", 2)):
        reply = made.reply(fed, state, client)
        found = dense(fed, client, reply)
        for module in own["a"]:
            mean = 0.75 * own["a"][module] + 0.25 * own["b"][module]
            assert torch.allclose(found[module], best(mean, rank), atol=1e-5)
            assert reply[f"{module}/A"].shape[0] == rank
            assert reply[f"{module}/A"].dtype == reply[f"{module}/B"].dtype == torch.float32
    alone = dense(fed, "c", made.reply(fed, state, "c"))
    assert all(torch.allclose(alone[module], own["c"][module], atol=1e-5) for module in own["c"])
    assert made.reply(fed, ServerState(), "a") == {}


def test_what_is_no_factor_is_averaged_and_statistics_stay_at_the_server(fed: Federation) -> None:
    for name in ("ties", "regmean"):
        made = aggregator(name, weighting="num_samples")
        state = absorbed(fed, made, answer(fed, made, "a", 3), answer(fed, made, "b", 1))
        reply = made.reply(fed, state, "a")
        notes = [trained(fed, client)["global/note/bias"] for client in "ab"]
        expected = 0.75 * notes[0] + 0.25 * notes[1]
        assert torch.allclose(reply["global/note/bias"], expected)
        assert not any(key.startswith("gram/") for key in reply)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrival_changes_no_bit(fed: Federation, name: str) -> None:
    made = aggregator(name, **({"space": "delta"} if name in ("knots-ties", "dare") else {}))
    clients = "ac" if name == "fisher" else "abc"  # A and B are merged apart: one rank
    updates = [answer(fed, made, client) for client in clients]
    one, other = absorbed(fed, made, *updates), absorbed(fed, made, *reversed(updates))
    assert one.tensors == other.tensors  # content addresses
    assert one.report == other.report


def test_emr_gives_every_client_its_own(fed: Federation) -> None:
    made = aggregator("emr")
    state = absorbed(fed, made, update(fed, "a"), update(fed, "b"))
    replies = {client: dense(fed, client, made.reply(fed, state, client)) for client in "ab"}
    module = next(iter(replies["a"]))
    assert not torch.allclose(replies["a"][module], replies["b"][module], atol=1e-3)
    assert made.reply(fed, state, "c") == {}
    table = state.report["weights"]
    assert {client: sum(row.values()) for client, row in table.items()} == pytest.approx({"a": 1.0, "b": 1.0})
    assert table["a"] != table["b"]
    later = absorbed(fed, made, update(fed, "a"), state=state)  # b does not take part, and keeps what it had
    assert later.tensors["client b"] == state.tensors["client b"]


def test_reports_say_what_happened_to_each_module(fed: Federation) -> None:
    state = absorbed(fed, aggregator("task-arithmetic", merge_coef=1.0), update(fed, "a"), update(fed, "b"))
    assert state.report["space"] == "delta"
    found = state.report["backbones"][fed.backbone_of["a"]]
    everybody = [client for client, name in fed.backbone_of.items() if name == fed.backbone_of["a"]]
    assert state.report["weights"] == {client: {"a": 0.5, "b": 0.5} for client in everybody}
    row = found["modules"]["global/layer0.mlp.down_proj"]
    assert row["rank"] == 6.0  # 4 + 2
    assert 0 < row["error"] < 1
    own = {c: dense(fed, c, trained(fed, c))["global/layer0.mlp.down_proj"] for c in "ab"}
    mean_norm = (own["a"].norm() + own["b"].norm()) / 2
    assert row["norm_ratio"] == pytest.approx(float((own["a"] + own["b"]).norm() / mean_norm), rel=1e-5)
    assert set(found["sar"]) == {"a", "b"}
    assert all(0 <= value <= 1 for value in found["sar"].values())
    assert found["mean"]["rank"] == 6.0
    once = absorbed(fed, aggregator("flexlora"), update(fed, "a")).report["backbones"][fed.backbone_of["a"]]
    assert once["sar"]["a"] == pytest.approx(1.0, abs=1e-3)  # up to the share of the norm that SAR leaves out
    assert once["mean"]["norm_ratio"] == pytest.approx(1.0)


def test_a_client_with_nan_is_named_or_left_out(fed: Federation) -> None:
    broken = trained(fed, "b")
    broken["global/layer0.mlp.down_proj/B"][0, 0] = float("inf")
    updates = [update(fed, "a"), update(fed, "b", broken, 9)]
    with pytest.raises(
        RunStopped, match="client 'b' in round 4 holds NaN or infinity in 'global/layer0.mlp.down_proj/B'"
    ):
        absorbed(fed, aggregator("flexlora"), *updates, turn=4)
    lenient = aggregator("flexlora", drop_bad=True)
    state = absorbed(fed, lenient, *updates)
    assert state.report["left_out"] == ["b"]
    alone = absorbed(fed, lenient, updates[0])
    assert state.tensors == alone.tensors  # weights are those of who is left
    nobody = absorbed(fed, lenient, updates[1], state=state)
    assert nobody.tensors == state.tensors


def test_factors_are_merged_apart_only_in_one_rank(fed: Federation) -> None:
    assert aggregator("ties", space="ab").needs.equal == ("adapter",)
    assert aggregator("ties").needs.equal == ()
    with pytest.raises(UserError, match="Merging A and B separately needs one rank"):
        absorbed(fed, aggregator("ties", space="ab"), update(fed, "a"), update(fed, "b"))


def test_updates_that_do_not_fit_are_refused(fed: Federation) -> None:
    half = {key: value for key, value in trained(fed, "b").items() if "layer0.mlp.down_proj" not in key}
    with pytest.raises(UserError, match="'a' and 'b' do not hold the same modules: 'global/layer0.mlp.down_proj'"):
        absorbed(fed, aggregator("ties"), update(fed, "a"), update(fed, "b", half))
    bare = {key: value for key, value in trained(fed, "a").items() if not key.startswith(("gram", "fisher"))}
    with pytest.raises(UserError, match="'a' has no Gram matrix of 'layer0"):
        absorbed(fed, aggregator("regmean"), update(fed, "a", bare))
    with pytest.raises(UserError, match="'a' has no Fisher information of 'global/layer0"):
        absorbed(fed, aggregator("fisher"), update(fed, "a", bare))
    lone = {key: value for key, value in bare.items() if key != "global/layer0.mlp.down_proj/B"}
    with pytest.raises(UserError, match="'a' has no 'global/layer0.mlp.down_proj/B'"):
        absorbed(fed, aggregator("ties"), update(fed, "a", lone))


def test_adapters_with_params_that_mean_the_same_everywhere_are_refused(tmp_path: Path) -> None:
    made = bench(tmp_path, "adapter.name=pqlora")
    with pytest.raises(UserError, match="works with the adapters lora, not with 'pqlora'"):
        build(made.config(), made.manager, made.benchmark())


def test_spaces_that_no_federation_can_run_are_refused_before_it(fed: Federation) -> None:
    with pytest.raises(UserError, match="set aggregator.options.relora=true, or choose the space 'delta'"):
        aggregator("ties", space="weight").check(fed)
    aggregator("ties", space="weight", relora=True).check(fed)
    aggregator("fisher", space="weight", relora=True).check(fed)
    with pytest.raises(UserError, match="only a backbone can take in; choose the space 'delta'"):
        aggregator("emr", space="weight").check(fed)
    with pytest.raises(UserError, match="'emr' gives every client its own delta, and a backbone takes in one"):
        aggregator("emr", relora=True)
    with pytest.raises(UserError, match="leave ab_reference at 'zero'"):
        aggregator("ties", space="ab", relora=True, ab_reference="previous_global")


def test_clients_that_adapt_other_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is adapted by one only of the clients 'a' and 'b'"):
        built(tmp_path, targets=["q_proj"])


# ReLoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "space"), [("flexlora", "delta"), ("ties", "delta"), ("ties", "weight")])
def test_relora_adds_whole_deltas_up_and_starts_afresh(fed: Federation, name: str, space: str) -> None:
    made = aggregator(name, relora=True, space=space, weighting="uniform")
    module, key = "global/layer0.mlp.down_proj", "base/layer0.mlp.down_proj/W"
    assert made.base(fed, ServerState(), fed.host_of("a")) is None
    assert made.reply(fed, ServerState(), "a") == {}
    state, total = ServerState(), torch.zeros(1, dtype=torch.float64)
    for turn in range(3):
        updates = [update(fed, client, trained(fed, client, turn)) for client in "ab"]
        state = absorbed(fed, made, *updates, state=state, turn=turn)
        own = [dense(fed, client, trained(fed, client, turn))[module] for client in "ab"]
        if name == "flexlora":
            total = total + (own[0] + own[1]) / 2
        base = made.base(fed, state, fed.host_of("a"))
        assert base is not None
        found = fed.store.get(base.address)
        assert found[key].dtype == torch.float32
        assert set(found) == {f"base/{m.split('/')[1]}/W" for m in dense(fed, "a", trained(fed, "a"))}
        if name == "flexlora":  # rank 6, more than any client has
            assert torch.allclose(found[key].double(), total, atol=1e-5)
            assert torch.linalg.matrix_rank(total) >= 6
    assert made.base(fed, state, fed.host_of("b")) == base  # another host of the same backbone
    assert made.base(fed, state, fed.host_of("c")) is None
    reply = made.reply(fed, state, "a")
    assert not any(value.any() for name_, value in reply.items() if name_.endswith("/B"))
    assert reply[f"{module}/A"].any()
    assert not torch.equal(
        reply[f"{module}/A"], fed.adapter_of("a").initial(fed.load(fed.host_of("a")), "global", 0)[f"{module}/A"]
    )
    others = absorbed(fed, made, update(fed, "c"), state=state, turn=3)
    assert made.base(fed, others, fed.host_of("a")) == base  # nothing new for them
    assert base.sent > 0


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(setup: Setup) -> Worker:
    """One for all tests: adapters are put into a backbone once."""
    return setup.worker(MemoryStore())


def measured(
    setup: Setup, worker: Worker, made: MergingAggregator, client: str = "a"
) -> tuple[dict[str, Tensor], Any, Any]:
    """What a client's statistic sends, with the context and the host it was measured on."""
    fed = setup.federation(MemoryStore())
    who = next(item for item in fed.clients if item.client_id == client)
    ctx = context(fed, who, 0)
    host = worker.host(ctx.backbone)
    start = {key: value for key, value in trained(fed, client).items() if key.startswith("global/layer")}
    host.load(start)
    statistics = made.statistics(ctx, setup.parts.objective)
    actor = Actor(client, ctx.backbone, worker.host, lambda *parts: torch_rng(0, *parts), TorchDriver())
    return dict(train(actor, (), statistics, {}).sent), ctx, host


def test_gram_matrices_are_those_of_the_inputs_without_padding(setup: Setup, worker: Worker) -> None:
    made = aggregator("regmean", samples=3)
    sent, ctx, host = measured(setup, worker, made)
    sites = {name for key in sent for name in key.removeprefix("gram/").split("+")}
    assert sites == {site.name for site in ctx.fed.adapter_of("a").sites(host.backbone)}
    assert any(key.count("+") == 2 for key in sent)  # query, key and value share their input
    task = ctx.client.tasks[0]
    samples = (task.validation or task.train)[:3]
    site = next(site for site in ctx.fed.adapter_of("a").sites(host.backbone) if site.name == "layer0.mlp.down_proj")
    rows = []
    for sample in samples:  # one at a time: no padding at all
        seen: list[Tensor] = []
        hook = host.backbone.module(site.path).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        encoded = host.backbone.codec.encode([sample])
        with torch.no_grad(), host.mixing({"global": 1.0}, encoded.inputs["attention_mask"]):
            host.backbone.model(**encoded.inputs, use_cache=False)
        hook.remove()
        rows.append(seen[0][0].double())
    x = torch.cat(rows)
    assert torch.allclose(sent["gram/layer0.mlp.down_proj"].double(), x.T @ x / len(x), atol=1e-5)
    assert aggregator("regmean").asks[0].keys.match("gram/a+b")


def test_diagonal_grams_are_the_diagonals_and_raw_sums_count_tokens(setup: Setup, worker: Worker) -> None:
    whole, *_ = measured(setup, worker, aggregator("regmean", samples=3))
    short, *_ = measured(setup, worker, aggregator("regmean", samples=3, diagonal=True))
    raw, *_ = measured(setup, worker, aggregator("regmean", samples=3, per_token=False))
    for key, gram in whole.items():
        assert torch.allclose(short[key], gram.diagonal(), rtol=1e-4)
        ratio = raw[key].diagonal().sum() / gram.diagonal().sum()
        assert float(ratio) == pytest.approx(round(float(ratio)), rel=1e-5)  # the number of tokens
        assert ratio > 3


def test_fisher_squares_the_gradients_of_single_samples(setup: Setup, worker: Worker) -> None:
    sent, ctx, host = measured(setup, worker, aggregator("fisher", samples=3))
    task = ctx.client.tasks[0]
    key = "global/layer0.mlp.down_proj/B"
    squares, signal = [], []
    chosen = host.select(ctx.fed.adapter_of("a").trainable("global"))
    for sample in (task.validation or task.train)[:3]:
        encoded = host.backbone.codec.encode([sample])
        with host.mixing({"global": 1.0}, encoded.inputs["attention_mask"]):
            logits = host.backbone.model(**encoded.inputs, use_cache=False).logits
        labels = encoded.labels[:, 1:]
        picked = labels != -100
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][picked], labels[picked])  # mean over answer tokens
        gradient = torch.autograd.grad(loss, chosen[key])[0].double()
        squares.append(gradient.square())
        signal.append(gradient)
    mean = torch.stack(squares).mean(dim=0)
    assert torch.allclose(sent[f"fisher/{key}"].double(), mean, rtol=1e-3, atol=float(mean.max()) * 1e-4)
    batch = torch.stack(signal).mean(dim=0).square()
    assert not torch.allclose(batch, mean, rtol=0.1, atol=float(mean.max()) * 1e-2)
    assert set(sent) == {f"fisher/{name}" for name in chosen}


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("regmean", ()),
        ("fisher", ()),
        ("fisher", ("aggregator.options.space=delta",)),
        ("emr", ("cohort=2",)),
        ("ties", ("aggregator.options.relora=true",)),
    ],
)
def test_runs_to_the_end(name: str, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    out = bench(tmp_path, *settings, "evaluation.others=false", name=name).run()
    last = list(RunFolder.open(out).rounds())[-1]
    assert last["summary"]["report"]["backbones"]
    assert last["summary"]["report"]["space"] == ("ab" if name == "fisher" and not settings else "delta")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_announced_and_gives_a_merger(name: str) -> None:
    made = aggregator(name)
    assert made.merger.name == name
    assert made.merger.personal == (name == "emr")
    parts = Parts(objective=manager.make("objective", "fedit", {}), aggregator=made)
    assert parts.up[: len(parts.objective.up)] == parts.objective.up
