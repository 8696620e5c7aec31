"""Guided clients: the paper's equations on numbers that can be redone, and the objective inside a federation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from federation_support import built, copying_client
from pfl_platform.backbones import IGNORE, Encoded
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.rounds import drive, one_round, prepare
from pfl_platform.federation.setup import Setup
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.surfaces import Output
from pfl_plugins.guided.config import Config
from pfl_plugins.guided.equations import adjusted, distance, divergence, similarity
from pfl_plugins.guided.objective import BETA, Guided, deltas, guidance, strength

BACKBONE = "tiny-llama-s"


def adapter(up: list[list[float]], down: list[list[float]], slot: str = "local") -> dict[str, Tensor]:
    return {f"{slot}/layer0.q/B": torch.tensor(up), f"{slot}/layer0.q/A": torch.tensor(down)}


def test_the_penalty_sees_the_gauge_and_the_divergence_does_not() -> None:
    own = {"A": torch.tensor([[2.0, 0.0]]), "B": torch.tensor([[1.0], [3.0]])}
    scaled = {"A": own["A"] / 4, "B": own["B"] * 4}
    assert torch.equal(own["B"] @ own["A"], scaled["B"] @ scaled["A"])
    # (2 - 0.5)^2 + (1 - 4)^2 + (3 - 12)^2
    assert float(distance(own, scaled)) == pytest.approx(2.25 + 9 + 81)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    logits = [x @ part["A"].T @ part["B"].T for part in (own, scaled)]
    assert divergence(*logits, 1.0, vocab_mean=False).abs().max() < 1e-6


def test_the_divergence_is_from_the_client_to_the_teacher() -> None:
    own, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forth = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    back = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(divergence(own, teacher, 1.0, vocab_mean=False)) == pytest.approx(forth, rel=1e-6)
    assert float(divergence(teacher, own, 1.0, vocab_mean=False)) == pytest.approx(back, rel=1e-6)
    assert float(divergence(own, teacher, 1.0, vocab_mean=True)) == pytest.approx(forth / 2, rel=1e-6)
    # T = 2: the softmax of half the logits, times 4
    p = 0.9**0.5 / (0.9**0.5 + 0.1**0.5)
    warm = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(divergence(own, teacher, 2.0, vocab_mean=False)) == pytest.approx(4 * warm, rel=1e-5)


def test_a_small_divergence_is_half_the_fisher_distance() -> None:
    """KL(p_z || p_{z + d}) is d^T F d / 2 to second order, F = diag(p) - p p^T the Fisher information of the logits."""
    generator = torch.Generator().manual_seed(1)
    logits, step = torch.randn(1, 6, generator=generator), torch.randn(1, 6, generator=generator)
    p = logits.double().softmax(-1)[0]
    fisher = torch.diag(p) - torch.outer(p, p)
    for size, error in ((1e-1, 0.2), (1e-2, 0.02)):
        small = size * step
        half = 0.5 * small[0].double() @ fisher @ small[0].double()
        log_p, log_q = (values.double().log_softmax(-1) for values in (logits, logits + small))
        exact = float((log_p.exp() * (log_p - log_q)).sum())
        assert exact == pytest.approx(float(half), rel=error)
    found = float(divergence(logits, logits + 0.1 * step, 1.0, vocab_mean=False))
    assert found == pytest.approx(0.01 * 0.5 * float(step[0].double() @ fisher @ step[0].double()), rel=0.2)


def test_guidance_is_the_mean_over_answer_positions_then_rows() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 1, 0], [IGNORE, 1, IGNORE, IGNORE]])
    encoded = Encoded({"attention_mask": torch.ones(2, 4, dtype=torch.int64)}, labels, [], [])
    own, teacher = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    # Position t predicts token t + 1. Row 0: positions 1 and 2; row 1: position 0. Position 3 must not count.
    own[0, 1] = torch.tensor([math.log(3.0), 0.0])
    own[1, 0] = torch.tensor([math.log(3.0), 0.0])
    own[:, 3] = torch.tensor([100.0, 0.0])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = guidance(Output(own, encoded), Output(teacher, encoded), Config(guide="kd", kd_vocab_mean=False))
    assert found.tolist() == pytest.approx([one / 2, one], rel=1e-6)


def test_numbers_are_drawn_to_the_teachers_numbers() -> None:
    """Row 0 has a class and row 1 a number. The gradient of the squared difference is twice the difference."""
    labels = torch.tensor([[IGNORE, 1], [IGNORE, IGNORE]])
    encoded = Encoded({"attention_mask": torch.ones(2, 3)}, labels, [], [], torch.tensor([math.nan, 3.5]))
    own, teacher = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    own[0, 0] = torch.tensor([math.log(2.0), 0.0, 0.0])  # 1/2, 1/4, 1/4
    own[1, 0, 0], teacher[1, 0, 0] = 2.0, 3.0
    own.requires_grad_(True)
    kl = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    for config in (Config(guide="kd", kd_vocab_mean=False), Config(guide="kd", temperature=1.0)):
        found = guidance(Output(own, encoded), Output(teacher, encoded), config)
        assert found.tolist() == pytest.approx([kl / (3 if config.kd_vocab_mean else 1), 1.0], rel=1e-6)
    (gradient,) = torch.autograd.grad(found[1], own)
    assert gradient[1, 0].tolist() == [-2.0, 0.0, 0.0]
    warm = guidance(Output(own, encoded), Output(teacher, encoded), Config(guide="kd", temperature=2.0))
    assert float(warm[1].detach()) == 1.0  # a number has no temperature


@pytest.mark.parametrize(("alike", "expected"), [(0.8, 0.4), (-0.5, 0.0), (3.0, 1.0)])
def test_the_strength_is_clipped(alike: float, expected: float) -> None:
    assert adjusted(0.5, alike) == pytest.approx(expected)


def test_similarity_of_adapters() -> None:
    own = [Delta(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]))]
    merged = [Delta(torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 0.0]]))]
    # deltas: [[3, 0], [4, 0]] and [[2, 0], [0, 0]]: 6 / (5 * 2); factors: (3 + 2) / (sqrt(26) sqrt(5))
    assert similarity(own, merged, "cosine", space="delta") == pytest.approx(0.6)
    assert similarity(own, merged, "cosine", space="factors") == pytest.approx(5 / math.sqrt(130))
    assert similarity(own, merged, "sar") == pytest.approx(0.6)


def test_hard_initialisation_takes_the_reply() -> None:
    state = {**adapter([[1.0]], [[1.0]]), "moments/x": torch.ones(1)}
    reply = adapter([[2.0]], [[3.0]])
    received = Guided(Config(guide="hard")).receive(state, reply)
    assert {key: received[key].item() for key in reply} == {key: value.item() for key, value in reply.items()}


def test_the_anchor_is_turned_to_the_client_and_stays_the_same_delta() -> None:
    state = adapter([[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]])
    reply = adapter([[0.0, 1.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]])  # the same delta, rows swapped
    anchored = Guided(Config(guide="parametric")).receive(dict(state), reply)
    assert torch.allclose(anchored["global/layer0.q/A"], state["local/layer0.q/A"], atol=1e-6)
    assert torch.allclose(anchored["global/layer0.q/B"], state["local/layer0.q/B"], atol=1e-6)
    plain = Guided(Config(guide="parametric", gauge="none")).receive(dict(state), reply)
    assert torch.equal(plain["global/layer0.q/A"], reply["local/layer0.q/A"])
    for received in (anchored, plain):
        assert torch.equal(received["local/layer0.q/A"], state["local/layer0.q/A"])
        (delta,) = deltas(received, "global").values()
        (sent,) = deltas(reply, "local").values()
        assert torch.allclose(delta.dense(), sent.dense(), atol=1e-6)


def test_the_strength_follows_the_similarity_of_the_last_adapter() -> None:
    state, reply = adapter([[3.0], [4.0]], [[1.0, 0.0]]), adapter([[1.0], [0.0]], [[1.0, 0.0]])
    received = Guided(Config(guide="kd", adjust="sar")).receive(dict(state), reply)
    assert float(received["log/similarity"]) == pytest.approx(0.6)
    assert strength(received, 0.5) == pytest.approx(0.3)
    assert strength(state, 0.5) == 0.0  # before anything has arrived
    opposed = Guided(Config(guide="kd", adjust="cosine", cosine_space="delta")).receive(
        dict(state), adapter([[-1.0], [0.0]], [[1.0, 0.0]])
    )
    assert float(opposed[BETA]) == 0.0


def federation(*sets: str) -> Setup:
    sets = (
        *("rounds=3", "local_steps=2", "adapter.r=2", "training.batch_size=2", "backbone_options.init=0"),
        *("evaluation.every=3", "objective=guided", "aggregator=fedavg", *sets),
    )
    return built("fedit", [copying_client(name, BACKBONE) for name in "ab"], sets)


def rounds(setup: Setup, count: int) -> tuple[list[Mapping[str, Any]], MemoryStore]:
    store = MemoryStore()
    fed, engine = setup.federation(store), InProcessEngine(setup.worker(store))
    progress = drive(prepare(fed, setup.parts), engine)
    found = []
    for index in range(count):
        result = drive(one_round(fed, setup.parts, progress, index), engine)
        progress = result.progress
        found.append(result.outcomes)
    return found, store


def local_of(store: MemoryStore, outcome: Any) -> dict[str, Tensor]:
    return {key: value for key, value in store.get(outcome.state).items() if key.startswith("local/")}


@pytest.mark.parametrize("guide", ["parametric", "kd"])
def test_guidance_draws_a_client_towards_the_global_adapter(guide: str) -> None:
    """With beta = 1 the task plays no part once a global adapter is there; then clients come nearer to each other,
    while with beta = 0 they go their ways."""
    gaps = {}
    for beta in (0.0, 1.0):
        outcomes, store = rounds(
            federation(
                f"objective.guide={guide}", f"objective.beta={beta}", "training.lr=0.01",
                "objective.kd_vocab_mean=false", "local_steps=6",
            ),
            3,
        )  # fmt: skip
        a, b = (local_of(store, outcomes[-1][name]) for name in ("a", "b"))
        gaps[beta] = float(sum((a[key] - b[key]).square().sum() for key in a))
    assert gaps[1.0] < 0.8 * gaps[0.0]


def test_the_similarity_is_logged_each_round_and_stays_at_the_client() -> None:
    outcomes, store = rounds(federation("objective.guide=parametric", "objective.adjust=sar"), 2)
    assert "similarity" not in outcomes[0]["a"].metrics
    assert 0.0 <= outcomes[1]["a"].metrics["similarity"] <= 1.0
    sent = store.get(outcomes[1]["a"].sent)
    assert sent
    assert all(key.startswith("local/") for key in sent)


def test_a_teacher_costs_one_forward_and_no_second_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = federation("objective.guide=kd")
    store = MemoryStore()
    fed, worker = setup.federation(store), setup.worker(store)
    model = worker.host(BACKBONE).backbone.model
    passes: list[bool] = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    progress = drive(prepare(fed, setup.parts), InProcessEngine(worker))
    counts = []
    for index in range(2):
        passes.clear()
        progress = drive(one_round(fed, setup.parts, progress, index), InProcessEngine(worker)).progress
        counts.append((passes.count(True), passes.count(False)))
    students, teachers = zip(*counts, strict=True)
    assert students[0] <= students[1]
    assert teachers[0] == 0
    assert 0 < teachers[1] <= students[1]


def test_a_beta_for_nobody_is_refused() -> None:
    with pytest.raises(UserError, match=r"betas names 'c', which is no client"):
        federation('objective.betas={"c": 0.1}')
