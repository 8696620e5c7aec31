"""OSRM inside a federation: what is measured, what travels, where clients begin, and how the merged model is scored."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.config import RunConfig
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData, Turn
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation.rounds import Progress, context, drive, one_round, personal, prepare
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Outcome
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.rng import torch_rng
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing.bench import samples
from pfl_platform.training.streams import Epochs
from pfl_platform.training.view import BatchView
from pfl_plugins.osrm.config import Config
from pfl_plugins.osrm.features import INPUTS, ROWS, Features, rows_key
from pfl_plugins.osrm.objective import Osrm
from pfl_plugins.osrm.starts import features_task, neighbours, picked, sites_of

SMALL, LARGE = "tiny-llama-s", "tiny-llama-m"
BACKBONES = {"a": SMALL, "b": SMALL, "c": SMALL, "lone": LARGE}


def client(name: str, backbone: str) -> ClientData:
    task = TaskData(
        f"copy-{name}", "open-ended", "exact", samples(name, 8), samples(f"{name}v", 3), samples(f"{name}t", 3)
    )
    return ClientData(name, backbone, (task,))


def configured(*sets: str, method: str = "osrm") -> RunConfig:
    sets = (
        *("rounds=2", "local_steps=2", "adapter.r=2", "training.batch_size=4", "training.lr=0.01", "engine.threads=1"),
        *("backbone_options.init=0", "evaluation.every=1", "evaluation.max_new_tokens=3", *sets),
    )
    return Resolver(PluginManager()).resolve(Request(method=method, sets=list(sets)))


def federation(*sets: str, clients: str = "ab", method: str = "osrm") -> Setup:
    chosen = tuple(client(name, BACKBONES[name]) for name in (["lone"] if clients == "lone" else clients))
    return build(configured(*sets, method=method), PluginManager(), FixedBenchmark("test", chosen, "1"))


class Run:
    """A federation in memory, round by round; what its tasks did is kept."""

    def __init__(self, setup: Setup, store: MemoryStore | None = None) -> None:
        self.setup, self.store = setup, store or MemoryStore()
        self.fed = setup.federation(self.store)
        self.worker = setup.worker(self.store)
        self.engine = InProcessEngine(self.worker)
        self.done: list[tuple[Any, Outcome]] = []
        execute = self.worker.execute

        def watched(task: Any, observe: Any = None) -> Outcome:
            outcome = execute(task, observe)
            self.done.append((task, outcome))
            return outcome

        self.worker.execute = watched  # type: ignore[method-assign]
        self.progress: Progress = drive(prepare(self.fed, setup.parts), self.engine)
        self.outcomes: list[Mapping[str, Outcome]] = []

    def go(self, rounds: int = 1) -> Run:
        for index in range(len(self.outcomes), len(self.outcomes) + rounds):
            result = drive(one_round(self.fed, self.setup.parts, self.progress, index), self.engine)
            self.progress = result.progress
            self.outcomes.append(result.outcomes)
        return self

    def state(self, name: str) -> dict[str, Tensor]:
        return self.store.get(self.progress.states[name])

    def texts(self, name: str, index: int = -1) -> list[str]:
        address = self.outcomes[index][name].predictions
        assert address is not None
        return [json.loads(line)["text"] for line in self.store.get_text(address).splitlines()]


def part(state: Mapping[str, Tensor], letter: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: value for key, value in state.items() if key.endswith(f"/{letter}") and "local" in key}


@pytest.fixture(scope="module")
def prepared() -> Run:
    """Three clients on one backbone and one alone on another, before round 0."""
    setup = build(
        configured("objective.samples=5"),
        PluginManager(),
        FixedBenchmark("test", tuple(client(name, backbone) for name, backbone in BACKBONES.items()), "1"),
    )
    return Run(setup)


def rows_of(run: Run, name: str) -> dict[str, Tensor]:
    """What a client sent, as its own store has it."""
    (sent,) = [outcome.sent for task, outcome in run.done if task.actor == f"features of {name}"]
    assert sent is not None
    return run.store.get(sent)


def test_only_declared_rows_leave_and_their_bytes_are_the_formula(prepared: Run) -> None:
    backbone = prepared.fed.load(SMALL)
    width = backbone.card.hidden_size
    (inner,) = {site.in_features for site in sites_of(prepared.fed, "a")} - {width}
    asked = {task.actor: outcome for task, outcome in prepared.done if task.up}
    assert sorted(asked) == ["features of a", "features of b", "features of c"]
    for outcome in asked.values():
        sent = prepared.store.get(outcome.sent or "")
        assert all(key in ROWS for key in sent)
        # Per block one row for q, k and v, one for o, one for gate and up, one for down.
        assert len(sent) == 4 * len(backbone.blocks)
        assert outcome.cost.up_payload == 4 * len(backbone.blocks) * (3 * width + inner)
        assert outcome.cost.down_payload == 0
    rank = 2
    received = [outcome for task, outcome in prepared.done if task.inbox]
    assert len(received) == 3
    for outcome in received:
        assert outcome.cost.down_payload == rank * 4 * len(backbone.blocks) * (3 * width + inner)
        assert outcome.cost.up_payload == 0


def test_a_client_begins_where_the_others_are_not(prepared: Run) -> None:
    for name in "abc":
        state = prepared.state(name)
        assert all(not key.startswith(("features/", "start/")) for key in state)
        first = part(state, "A")
        for site in sites_of(prepared.fed, name):
            a = first[site.name].double()
            assert torch.allclose(a @ a.T, torch.eye(2, dtype=torch.float64), atol=1e-6)
            assert not part(state, "B")[site.name].any()
            key = rows_key(site.name)
            for other in neighbours(prepared.fed, name):
                rows = rows_of(prepared, other)
                if key in rows:
                    assert (a @ rows[key].double().T).norm() < 1e-5 * rows[key].norm()
            own = rows_of(prepared, name)
            if key in own:  # the client's own features are heard
                assert (a @ own[key].double().T).norm() > 1e-4 * own[key].norm()


def test_maps_that_read_the_same_input_share_an_A_and_clients_do_not(prepared: Run) -> None:
    a, b = part(prepared.state("a"), "A"), part(prepared.state("b"), "A")
    q, k, v = (name for name in sorted(a) if name.startswith("layer0.") and name.rsplit(".")[-1] in _QKV)
    assert torch.equal(a[q], a[k])
    assert torch.equal(a[q], a[v])
    (o,) = [name for name in a if name.startswith("layer0.") and name.endswith("o_proj")]
    assert not torch.equal(a[q], a[o])
    assert not torch.allclose(a[q], b[q])


_QKV = ("q_proj", "k_proj", "v_proj")


def test_a_client_alone_keeps_the_ordinary_start_and_this_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = Run(federation(clients="lone"))
    assert "Client 'lone' is the only one on tiny-llama-m; it keeps the adapter's ordinary start." in caplog.text
    assert run.done == []
    ordinary = run.setup.adapter.initial(run.fed.load(LARGE), "local", 0)
    state = run.state("lone")
    assert all(torch.equal(state[key], value) for key, value in ordinary.items())


def test_the_first_forward_is_the_bare_backbone_s(prepared: Run) -> None:
    host = prepared.worker.host(SMALL)
    host.load(prepared.state("a"))
    inputs = host.backbone.codec.encode(samples("x", 2)).inputs
    logits = []
    with torch.no_grad():
        for mix in ({}, {"local": 1.0}):
            with host.mixing(mix):
                logits.append(host.backbone.model(**inputs).logits)
    assert torch.equal(*logits)


def test_the_start_has_a_seed(prepared: Run) -> None:
    first = part(prepared.state("a"), "A")
    for seed, same in ((0, True), (1, False)):
        setup = build(
            configured("objective.samples=5", f"seed={seed}"),
            PluginManager(),
            FixedBenchmark("test", tuple(client(name, SMALL) for name in "cba"), "1"),  # in another order
        )
        again = part(Run(setup).state("a"), "A")
        assert all(torch.allclose(first[site], again[site], atol=1e-5) for site in first) == same


# What is measured.


def measured(host: Host, chosen: list[Sample], *, batch: int = 2, **options: Any) -> dict[str, Tensor]:
    sites = tuple(layer.site for layer in host.layers.values())
    statistic = Features(sites, Epochs(chosen, batch, 0, "t", shuffle=False), 1, **options)
    acc = None
    for start in range(0, len(chosen), batch):
        view = BatchView(lambda _: host, "x", chosen[start : start + batch], step=0, rng=lambda *_: torch.Generator())
        with torch.no_grad():
            acc = statistic.add(acc, view)
    assert acc is not None
    sent, kept = statistic.finish(acc, {}, lambda *parts: torch_rng(0, *parts))
    assert set(kept) == {INPUTS}
    return dict(sent)


@pytest.fixture(scope="module")
def host(prepared: Run) -> Host:
    return prepared.worker.host(SMALL)


def test_padding_plays_no_part(host: Host) -> None:
    short = Sample("s", (Turn("Say red.", "red"),))
    long = Sample("l", (Turn("Say red, not blue, and then say green, not round, please. " * 3, "green"),))
    alone, padded = measured(host, [short], variant="full"), measured(host, [short, long], variant="full")
    for key, rows in alone.items():
        assert rows.shape[0] == 1
        assert padded[key].shape[0] == 2
        assert torch.allclose(rows[0], padded[key][0], rtol=1e-3, atol=1e-5), key


def test_a_sample_s_row_is_the_mean_over_its_tokens_and_a_client_s_over_its_samples(host: Host) -> None:
    chosen = samples("mean", 3)
    site = next(iter(host.layers.values())).site
    seen: list[Tensor] = []
    hook = host.backbone.module(site.path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for sample in chosen:  # one at a time: no padding
            host.backbone.model(**host.backbone.codec.encode([sample]).inputs)
    hook.remove()
    expected = torch.stack([x[0].mean(dim=0) for x in seen])
    full, mean = (measured(host, chosen, variant=variant)[rows_key(site.name)] for variant in ("full", "mean"))
    assert torch.allclose(full, expected, rtol=1e-3, atol=1e-5)
    assert mean.shape == (1, site.in_features)
    assert torch.allclose(mean[0], full.mean(dim=0), atol=1e-6)  # divided by k, not by k - 1
    one = measured(host, chosen[:1], variant="mean")[rows_key(site.name)]
    assert torch.allclose(one, full[:1], rtol=1e-3, atol=1e-5)  # k = 1


def test_noise_is_relative_and_addressed(host: Host) -> None:
    chosen = samples("noise", 2)
    plain = measured(host, chosen, variant="full")
    noisy, again = (measured(host, chosen, variant="full", noise=0.5) for _ in range(2))
    for key, rows in plain.items():
        assert torch.equal(noisy[key], again[key])
        size = float((noisy[key] - rows).square().mean().sqrt() / rows.square().mean().sqrt())
        assert size == pytest.approx(0.5, rel=0.35), key


@pytest.mark.parametrize("backbone", ["tiny-roberta", "tiny-t5"])
def test_encoders_and_encoder_decoders(backbone: str) -> None:
    """Every kind of backbone: padding is masked on the side that a map reads, and the keys and values of all
    cross-attentions share what the encoder gave."""
    manager = PluginManager()
    adapter = manager.make("adapter", "lora", {"r": 2})
    host = Host(manager.make("backbone", backbone, {"init": 0}), adapter, Osrm(Config()).slots)
    short = Sample("s", (Turn("Say red.", "red"),), options=("red", "blue"))
    long = Sample("l", (Turn("Say red, not blue, and then say it again. " * 2, "blue"),), options=("red", "blue"))
    alone, padded = measured(host, [short], variant="full"), measured(host, [short, long], variant="full")
    for key, rows in alone.items():
        assert torch.allclose(rows[0], padded[key][0], rtol=1e-3, atol=1e-4), key
    assert len(alone) < len(host.layers)
    if host.backbone.answer_side:
        crossed = [site for site in (layer.site for layer in host.layers.values()) if "EncDec" in site.path]
        reads_encoder = [site for site in crossed if site.path.endswith((".k", ".v"))]
        assert sum(rows_key(site.name) in alone for site in reads_encoder) == 1


def test_samples_are_drawn_from_what_may_be_read(prepared: Run) -> None:
    one = client("a", SMALL)
    few = picked(one, Config(samples=3), 0)
    assert len({sample.id for sample in few}) == 3
    assert few == picked(one, Config(samples=3), 0) != picked(one, Config(samples=3), 1)
    assert {sample.id for sample in picked(one, Config(), 0)} == {sample.id for sample in one.tasks[0].train}
    held = picked(one, Config(split="validation"), 0)
    assert {sample.id for sample in held} == {sample.id for sample in one.tasks[0].validation}
    task = features_task(prepared.fed, Config(samples=5), one)
    assert task.statistics[0].amount == 2  # batches of 4


# Training and the server.


def test_two_rounds_and_what_later_rounds_start_from() -> None:
    own, fresh = (Run(federation(f"objective.start={start}")).go(2) for start in ("own", "global"))
    early = [part(run.store.get(run.outcomes[0]["a"].state or ""), "B") for run in (own, fresh)]
    assert all(torch.equal(early[1][site], value) for site, value in early[0].items())
    for run in (own, fresh):
        assert all(outcome.cost.down_payload > 0 for outcome in run.outcomes[1].values())
        assert run.progress.server.tensors
    # Then one goes on from its own adapter and moments, the other from the reply, which is the same for both clients.
    assert any(key.startswith("moments/") for key in own.state("a"))
    assert not any(key.startswith("moments/") for key in fresh.state("a"))
    a, b = part(own.state("a"), "A"), part(own.state("b"), "A")
    apart = [float((a[site] - b[site]).norm()) for site in a]
    a, b = part(fresh.state("a"), "A"), part(fresh.state("b"), "A")
    together = [float((a[site] - b[site]).norm()) for site in a]
    assert max(together) < min(apart)


def test_a_frozen_A_stays() -> None:
    run = Run(federation("objective.freeze_a=true"))
    before = run.state("a")
    after = run.go().state("a")
    assert all(torch.equal(part(before, "A")[site], value) for site, value in part(after, "A").items())
    assert any(bool(value.any()) for value in part(after, "B").values())


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (("aggregator=fedavg",), "'fedavg' averages A and B separately"),
        (("aggregator.space=ab",), "'task-arithmetic' averages A and B separately"),
        (("aggregator.relora=true",), "would count it twice; set rounds=1"),
        (("adapter=pqlora",), "Osrm works with the adapters lora"),
        (("objective.samples=0",), "samples"),
    ],
)
def test_what_cannot_work_is_refused(sets: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federation(*sets)


def test_no_validation_samples_are_noticed_before_anything_starts() -> None:
    clients = [client(name, SMALL) for name in "ab"]
    bare = [replace(one, tasks=(replace(one.tasks[0], validation=[]),)) for one in clients]
    with pytest.raises(UserError, match="Client 'a' has no validation samples for OSRM"):
        build(configured("objective.split=validation"), PluginManager(), FixedBenchmark("test", tuple(bare), "1"))


def test_the_tool_measures_what_the_figures_show(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("osrm_diagnostics", checkout / "tools" / "osrm_diagnostics.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    reports = {}
    for method in ("osrm", "fedit"):
        sets = ("aggregator=task-arithmetic", "rounds=1", "objective.samples=8") if method == "osrm" else ("rounds=1",)
        run = Run(federation(*sets, method=method))
        first = {name: run.state(name) for name in "ab"}
        run.go()
        last = {name: run.state(name) for name in "ab"}
        setup = federation(*sets, method=method)
        rows = tool.features(setup, 8)
        assert all(len(found) == 8 for sites in rows.values() for found in sites.values())
        reports[method] = tool.measure(setup, first, last, rows)[SMALL]
        tool.show(method, {SMALL: reports[method]})
    printed = capsys.readouterr().out
    assert printed.count("change of A by training") == 2
    for found in reports.values():
        assert found["rank"]["samples"] == [1, 2, 5, 8]
        assert found["rank"]["mean"][:2] == [1.0, 2.0]
        assert all(0 < value < 1 for sites in found["change_of_A"].values() for value in sites.values())
    # Before training A hears less of the other client under OSRM than an ordinary A does.
    others = {method: found["reach_before"][0][1] for method, found in reports.items()}
    assert others["osrm"] < 0.7 * others["fedit"]


# The personalizer `replied`.


def test_replied_is_the_aggregate_that_a_hand_would_make() -> None:
    sets = ("training.lr=0.05", "local_steps=6", "rounds=1", "training.schedule=constant")
    own = Run(federation(*sets, method="fedit")).go()
    merged = Run(federation(*sets, "personalizer=replied", method="fedit")).go()
    for name in "ab":
        assert all(torch.equal(value, merged.state(name)[key]) for key, value in own.state(name).items())
    states = [own.state(name) for name in "ab"]  # 8 examples each
    host = own.worker.host(SMALL)
    host.load({key: (states[0][key] + states[1][key]) / 2 for key in states[0] if key.startswith("global/")})
    differing = 0
    for name, other in (("a", "b"), ("b", "a")):
        asked = [*samples(f"{name}t", 3), *samples(f"{other}t", 3)]
        by_hand = [text for k in (0, 3) for text in greedy(host, asked[k : k + 3], ({"global": 1.0},), 3)]
        assert merged.texts(name) == by_hand
        differing += own.texts(name) != by_hand
    assert differing
    # The exported tensors are those that were scored.
    found = personal(merged.fed, merged.setup.parts, merged.progress, "a")
    assert all(torch.allclose(found[key], host.params[key]) for key in found if key.startswith("global/"))


def test_the_reply_of_an_evaluation_is_booked_as_one() -> None:
    run = Run(federation("personalizer=replied", "cohort=1")).go(2)
    values = sum(value.numel() for key, value in run.state("a").items() if key.startswith("local/"))
    for outcomes in run.outcomes:
        assert sorted(outcomes) == ["a", "b"]  # the absent client is scored, too
        for outcome in outcomes.values():
            assert outcome.scores
            assert outcome.cost.score_payload == 4 * values
            assert outcome.cost.score_wire > outcome.cost.score_payload
    first, second = ([outcome for outcome in outcomes.values() if outcome.cost.steps] for outcomes in run.outcomes)
    assert [outcome.cost.down_payload for outcome in first] == [0]
    assert [outcome.cost.down_payload for outcome in second] == [4 * values]


def test_replied_under_osrm_is_the_merged_delta_whatever_clients_go_on_from() -> None:
    run = Run(federation("personalizer=replied", "rounds=1", "adapter.r=4", "aggregator.merge_coef=0.5")).go()
    parts = run.setup.parts
    states = {name: run.state(name) for name in "ab"}
    reply = personal(run.fed, parts, run.progress, "a")
    assert torch.equal(parts.objective.receive(dict(states["a"]), reply)["local/layer0.self_attn.q_proj/A"],
                       states["a"]["local/layer0.self_attn.q_proj/A"])  # fmt: skip
    for site, down in part(reply, "A").items():
        merged = Delta(part(reply, "B")[site], down, 2.0).dense(torch.float64)
        total = sum(
            0.5 * Delta(part(state, "B")[site], part(state, "A")[site], 2.0).dense(torch.float64)
            for state in states.values()
        )
        left, values, right = torch.linalg.svd(torch.as_tensor(total))
        best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
        assert torch.allclose(merged, best, atol=1e-5 * float(values[0]))


def test_evaluations_of_replies_are_not_done_again_after_a_kill() -> None:
    whole, cut = (Run(federation("personalizer=replied", "rounds=1")) for _ in range(2))
    whole.go()
    execute, count = cut.worker.execute, len(cut.done)

    def mortal(task: Any, observe: Any = None) -> Outcome:
        if task.stage == "score" and task.actor == "b":
            raise KeyboardInterrupt
        return execute(task, observe)

    cut.worker.execute = mortal  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.go()
    ended = [(task.stage, task.actor) for task, _ in cut.done[count:]]
    assert ended == [("round", "a"), ("round", "b"), ("score", "a")]
    again = Run(federation("personalizer=replied", "rounds=1"), cut.store).go()
    assert [(task.stage, task.actor) for task, _ in again.done] == [("score", "b")]
    assert again.texts("b") == whole.texts("b")
    assert again.outcomes[0]["a"].scores == whole.outcomes[0]["a"].scores


def test_a_recipe_says_when() -> None:
    assert InferenceRecipe(({},)).when == "trained"
    assert federation("personalizer=replied", clients="lone").parts.recipe().when == "replied"
    with pytest.raises(UserError, match="nonsense"):
        federation("personalizer.name=replied", "personalizer.nonsense=1", clients="lone")


# Options of training.


def test_epochs_are_shuffled_passes_over_all_samples() -> None:
    setup = federation("local_epochs=3", "rounds=2", "training.batch_size=3", "training.warmup_ratio=0.1", method="sft")
    fed = setup.federation(MemoryStore())
    seen: list[list[str]] = []
    for index in range(2):
        ctx = context(fed, fed.clients[0], index)
        assert ctx.local_steps == 3 * 3  # 8 samples, the last batch of a pass has 2
        assert (ctx.optim.first_step, ctx.optim.total_steps, ctx.first_step) == (9 * index, 18, 9 * index)
        assert ctx.optim.warmup == 2  # a tenth of 18, rounded up
        opened = ctx.source.open({})
        for step in range(ctx.local_steps):
            seen.append([sample.id for sample in opened.batch(step)])
    everything = {sample.id for sample in fed.clients[0].tasks[0].train}
    passes = [[name for batch in seen[k : k + 3] for name in batch] for k in range(0, 18, 3)]
    assert all(len(each) == 8 and set(each) == everything for each in passes)
    assert len({tuple(each) for each in passes}) == 6  # shuffled anew, also across rounds


def test_steps_rule_where_epochs_are_not_asked_for() -> None:
    fed = federation("training.warmup=3", "training.warmup_ratio=0.5", method="sft").federation(MemoryStore())
    ctx = context(fed, fed.clients[0], 1)
    assert (ctx.local_steps, ctx.optim.warmup, ctx.optim.total_steps) == (2, 3, 4)
    assert not isinstance(ctx.source, Epochs)
