"""Costs at real shapes: parts by hand, and the command on methods whose figures are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.cli.costs import chosen, counted
from pfl_platform.distillation.predictions import Predictions
from pfl_platform.errors import UserError
from pfl_platform.ledger.plan import Row, scaling, variants, weighed
from pfl_platform.ledger.prices import Prices, memory, shares_of
from pfl_platform.ledger.sampling import Pass
from pfl_platform.ledger.tracing import Turn, trace
from pfl_platform.plugins import PluginManager
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Planned, Statistic
from pfl_plugins.fisher.statistic import Information
from pfl_plugins.osrm.features import Features
from pfl_plugins.regmean.statistic import Gram


def row(name: str, flops: float, sent: dict[str, int], work: Callable[[int], float] = lambda clients: 0.0) -> Row:
    return Row(name, "x", flops, 0.0, 1.0, 100, (), sent, (), 3, 0, work=work)


def test_values_by_who_combines_them() -> None:
    sent = {"local/block0.q/P": 4, "local/layer1.q/A": 50, "local/layer1.q/B": 30, "sketch/gradient": 7}
    found = row("m", 1.0, sent)
    assert (found.shared, found.grouped, found.measured) == (4, 80, 7)
    assert (found.part("A"), found.part("B"), found.part("P")) == (50, 30, 4)


def test_a_whole_step_updates_every_adapter_once() -> None:
    turn = Turn(updates={"local": 5, "global": 10})
    assert turn.whole_steps == 5
    assert Turn().whole_steps == 0


def test_the_server_is_shared_among_clients() -> None:
    base = row("sft", 10.0, {})
    points = scaling(
        row("m", 11.0, {"a/layer0/A": 2}, lambda clients: 2.0 * clients**2 * 400), base, [1, 10], steps=100
    )
    # 2 * n * 400 / (4 rows * 100 steps * 10)
    assert [point["flops"] for point in points] == pytest.approx([1.1 + 0.2, 1.1 + 2.0])
    assert [point["bytes"] for point in points] == [8.0, 8.0]


def test_memory_and_keys() -> None:
    assert memory(1000, 50, 2) / memory(1000, 50, 1) == pytest.approx(1100 / 1050)
    assert shares_of({"layer0.q/A": 3, "layer0.q/B": 5}, Keys("local/*/A"), "local") == {"layer0.q/A": 3}
    assert Pass("x", ("a",), (), True) == Pass("x", ("a",), (), True)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no list such as"):
        counted("many")
    with pytest.raises(UserError, match="No method is called"):
        chosen("ftd")
    with pytest.raises(UserError, match="on no card"):
        variants(["nothing"])


def test_the_papers_figures(pfl: Callable[..., Any]) -> None:
    """FLOPs relative to a client alone, bytes against a plain adapter of the 3B client at rank 128."""
    said = pfl(
        "costs", "--methods", "sft,fedit,ditto,fedmosaic", "--local-steps", "10", "--clients", "1,1000", "--json"
    )
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["reference"] == "sft"
    rows = {(item["method"], item["backbone"]): item for item in found["rows"]}
    small, large = dict.fromkeys(item["backbone"] for item in found["rows"])
    for backbone in (small, large):
        assert rows["fedit", backbone]["flops"] == pytest.approx(1.0, abs=0.02)
        assert rows["ditto", backbone]["flops"] == pytest.approx(2.0, abs=0.02)
        assert rows["fedmosaic", backbone]["flops"] == pytest.approx(1.098, rel=0.10)
        # dual adapters: moments and gradients in float32, activations once
        assert rows["fedmosaic", backbone]["training"] < rows["ditto", backbone]["training"] < 1.15
        assert {rows[name, backbone]["graphs"] for name in ("fedit", "ditto", "fedmosaic")} == {1}
    assert rows["fedit", large]["up"]["values"] == 194_510_848
    mine = rows["fedmosaic", large]["up"]
    assert mine["shared"] == pytest.approx(462_336 / 194_510_848)
    assert 1 - mine["grouped"] == pytest.approx(0.1429, abs=5e-5)
    assert 1 - mine["grouped"] - mine["shared"] == pytest.approx(0.1405, abs=5e-5)
    assert mine["measured"] == pytest.approx(0.0345, abs=5e-5)
    assert mine["relative"] - 1 == pytest.approx(-0.1060, abs=1e-4)
    assert rows["fedmosaic", small]["others"] == [small]


@pytest.mark.parametrize(
    ("backbone", "rank", "targets", "a", "b"),
    [
        ("llama-3.2-3b", 8, ("q_proj", "k_proj", "v_proj"), 2_064_384, 1_146_880),
        ("llama-3.2-1b", 16, (), 5_242_880, 6_029_312),  # 11,272,192 together
        ("vit-b16", 8, ("q_proj", "v_proj"), 147_456, 147_456),
    ],
)
def test_values_of_an_adapter(backbone: str, rank: int, targets: tuple[str, ...], a: int, b: int) -> None:
    manager = PluginManager()
    lora = manager.make("adapter", "lora", {"r": rank, "targets": targets})
    sites = lora.sites(manager.make("backbone", backbone, {"device": "meta"}))
    assert sum(rank * site.in_features for site in sites) == a
    assert sum(rank * site.out_features for site in sites) == b
    if backbone != "vit-b16":  # plans are for rows of text
        found = Prices(lambda name: manager.make("backbone", name, {"device": "meta"}), lora, 8, 2).values(backbone)
        assert [sum(size for key, size in found.items() if key.endswith(f"/{part}")) for part in "AB"] == [a, b]


@pytest.mark.parametrize("adapter", ["lora", "pqlora"])
def test_an_idle_slot_holds_no_copy_of_an_adapter(adapter: str) -> None:
    """Of a second slot in the mix at most its own r numbers per token and site are kept for the way back."""
    manager = PluginManager()
    kind = manager.make("adapter", adapter, {"r": 16})
    meta = {"device": "meta", "dtype": "bfloat16"}
    prices = Prices(lambda name: manager.make("backbone", name, meta), kind, 8, 2)
    alone, beside = (
        prices.held("tiny-llama-s", Pass("tiny-llama-s", ("a",), idle, True), rows=2) for idle in ((), ("b",))
    )
    sites = len(kind.sites(prices.host("tiny-llama-s").backbone))
    assert 0 <= beside - alone <= 2 * 8 * 16 * 4 * sites
    assert prices.held("tiny-llama-s", Pass("tiny-llama-s", ("a",), (), True), rows=4) == pytest.approx(
        2 * alone, rel=0.02
    )


@pytest.mark.parametrize(("combine", "passes"), [("logit_sum", 2), ("hidden_sum", 1)])
def test_passes_that_a_loss_holds_together(combine: str, passes: int, tmp_path: Path) -> None:
    """Both models' answers are added up: two graphs at once; or their deltas in each layer: one."""
    backbones = ("tiny-llama-s", "tiny-llama-m")
    found = trace("fedsim", backbones, tmp_path, steps=1, rounds=3, settings=[f"objective.combine={combine}"])
    graphs = {graph for turn in found.clients.values() for graph in turn.graphs}
    assert {len(graph.passes) for graph in graphs} == {passes}
    assert all(4 <= graph.beside < 16 for graph in graphs)  # log-probabilities in float32, and what they are made of


def test_statistics_say_what_they_will_send() -> None:
    """At Llama-3.2-1B: 16 layers of width 2,048 and 8,192; rank 8 on all seven maps."""
    manager = PluginManager()
    lora = manager.make("adapter", "lora", {"r": 8})
    meta = {"device": "meta", "dtype": "bfloat16"}
    prices = Prices(lambda name: manager.make("backbone", name, meta), lora, 8, 2)
    host = prices.host("llama-3.2-1b")
    sites, values = tuple(lora.sites(host.backbone)), prices.values("llama-3.2-1b")
    plan = Planned(lambda _: host.backbone, sites, prices.readers("llama-3.2-1b"), values, answers=10)
    source = Epochs((), 1, 0, "none")

    def total(statistic: Statistic) -> int:
        return sum(weighed(tensor) for tensor in statistic.sends(plan).values())

    # one input for q, k and v, one for o, one for gate and up, one for down
    assert total(Gram((), {}, source, 0)) == 16 * (3 * 2048**2 + 8192**2)
    assert total(Gram((), {}, source, 0, diagonal=True)) == 16 * (3 * 2048 + 8192)
    assert total(Features((), source, 0, "mean")) == 16 * (3 * 2048 + 8192)
    assert total(Features((), source, 0, "full", samples=5)) == 5 * 16 * (3 * 2048 + 8192)
    assert "gram/layer0.mlp.gate_proj+layer0.mlp.up_proj" in Gram((), {}, source, 0).sends(plan)
    assert total(Information(lora.trainable("local"), {}, source, 0)) == sum(values.values()) == 5_636_096
    dense = sum(site.in_features * site.out_features for site in sites)
    assert total(Information(Keys("base/*/W"), {}, source, 0)) == dense
    # 80 samples of 10 answer tokens: 128 log-probabilities of two bytes and tokens of four, and two numbers per sample
    said = Predictions({}, source, 0, top_k=128, dtype=torch.float16, samples=80)
    assert 4 * total(said) == 80 * 10 * 128 * (2 + 4) + 80 * (4 + 4)
    assert Predictions({}, source, 0, top_k=128).sends(plan) == {}
