"""OSRM inside a federation: what is measured, what travels, and where clients begin."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from osrm_support import BACKBONES, LARGE, SMALL, Run, client, federation, part, set_up
from pfl_platform.adapters.host import Host
from pfl_platform.config import Stream
from pfl_platform.data import Sample, Turn
from pfl_platform.federation.components import Federation
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.testing.bench import samples
from pfl_platform.training.streams import Epochs
from pfl_platform.training.view import BatchView
from pfl_plugins.osrm.config import Config
from pfl_plugins.osrm.features import INPUTS, ROWS, Features, rows_key
from pfl_plugins.osrm.objective import Osrm
from pfl_plugins.osrm.starts import features_task, neighbours, picked, sites_of


@pytest.fixture(scope="module")
def prepared() -> Run:
    """Three clients on one backbone and one alone on another, before round 0."""
    return Run(set_up([client(name, backbone) for name, backbone in BACKBONES.items()], "objective.samples=5"))


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
        others = [client(name) for name in "cba"]  # in another order
        setup = set_up(others, "objective.samples=5", f"seed={seed}")
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


def with_config(fed: Federation, **changes: object) -> Federation:
    return replace(fed, config=fed.config.model_copy(update=changes))


def test_nothing_is_measured_on_tasks_that_come_later(prepared: Run) -> None:
    first, fed = client("a"), prepared.fed
    two = replace(first, tasks=(*first.tasks, replace(client("b").tasks[0], name="later")))
    later = {sample.id for sample in two.tasks[1].train}
    for protocol, seen in (("dynamic", False), ("static", True)):
        stream = with_config(fed, stream=Stream(protocol=protocol))
        assert any(sample.id in later for sample in picked(stream, two, Config())) is seen


def test_samples_are_drawn_from_what_may_be_read(prepared: Run) -> None:
    one, fed = client("a"), prepared.fed
    few = picked(fed, one, Config(samples=3))
    assert len({sample.id for sample in few}) == 3
    assert few == picked(fed, one, Config(samples=3)) != picked(with_config(fed, seed=1), one, Config(samples=3))
    assert {sample.id for sample in picked(fed, one, Config())} == {sample.id for sample in one.tasks[0].train}
    held = picked(fed, one, Config(split="validation"))
    assert {sample.id for sample in held} == {sample.id for sample in one.tasks[0].validation}
    task = features_task(prepared.fed, Config(samples=5), one)
    assert task.statistics[0].amount == 2  # batches of 4
