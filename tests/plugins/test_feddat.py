"""FedDAT: the directions of its divergences, and who learns from whom in a federation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from federation_support import Federate, federating
from pfl_platform.backbones import IGNORE, Encoded
from pfl_platform.training.surfaces import Output
from pfl_plugins.feddat import objective
from pfl_plugins.feddat.equations import mutual


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "feddat", "training.lr=0.01")


def outputs() -> tuple[Output, Tensor]:
    """One row; position 0 predicts the answer, token 1. The learner says (0.75, 0.25), the teacher (0.5, 0.5)."""
    labels = torch.tensor([[IGNORE, 1]])
    own, teacher = torch.tensor([[[math.log(3.0), 0.0], [9.0, 0.0]]]), torch.zeros(1, 2)
    return Output(own, Encoded({"attention_mask": torch.ones(1, 2, dtype=torch.int64)}, labels, [], [])), teacher


def test_the_learner_comes_first_in_the_divergence_and_last_in_the_published_code() -> None:
    own, teacher = outputs()
    entropy = -math.log(0.25)
    forth = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert forth != pytest.approx(back, rel=0.05)
    assert mutual(own, teacher, 1.0).tolist() == pytest.approx([(entropy + forth) / 2])
    assert mutual(own, teacher, 1.0, teacher_first=True).tolist() == pytest.approx([(entropy + back) / 2])
    published = torch.nn.functional.kl_div(own.logits[:, 0].log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert published.item() == pytest.approx(back)


def test_the_divergence_is_warm_and_weighs_temperature_squared() -> None:
    own, teacher = outputs()
    p = math.sqrt(3) / (math.sqrt(3) + 1)  # softmax of half the logits
    warm = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert mutual(own, teacher, 2.0).tolist() == pytest.approx([(math.log(4) + 4 * warm) / 2], rel=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    own, teacher = outputs()
    own.logits.requires_grad_()
    teacher.requires_grad_()
    mutual(own, teacher, 3.0).sum().backward()
    assert own.logits.grad is not None
    assert own.logits.grad[0, 0].any()
    assert not own.logits.grad[0, 1].any()  # no answer there
    assert teacher.grad is None


def test_each_update_learns_from_the_other_as_it_was_at_the_batch(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    def watched(own: Output, teacher: Tensor, temperature: float, *, teacher_first: bool = False) -> Tensor:
        if own.encoded.rows == 2:  # not the dry row of the ledger
            calls.append((own.answers.detach(), teacher.clone()))
        assert (temperature, teacher_first) == (3.0, False)
        return mutual(own, teacher, temperature)

    monkeypatch.setattr(objective, "mutual", watched)
    rounds = federate(clients=1, rounds=4).go()  # by the second round the memory fills a batch
    calls.clear()
    rounds.go()
    assert len(calls) == 6  # three batches, two updates each
    for (shared, teacher), (again, target) in zip(calls[::2], calls[1::2], strict=True):
        assert torch.equal(target, shared)  # a_1 before its step
        assert torch.allclose(again, teacher, atol=1e-5)  # a_0 has not changed in between


def test_the_frozen_copy_is_the_download_and_only_the_shared_adapter_travels(federate: Federate) -> None:
    rounds = federate().go(2)
    received, state = rounds.received("a"), rounds.state("a")
    assert {key.split("/")[0] for key in rounds.sent("a")} == {key.split("/")[0] for key in received} == {"global"}
    for key, value in received.items():
        assert torch.equal(state[key.replace("global/", "anchor/")], value)
        assert not key.endswith("B") or not torch.equal(state[key], value)  # a_1 has been trained since
    own = [rounds.state(client, "local/*") for client in "ab"]
    assert any(not torch.equal(own[0][key], own[1][key]) for key in own[0])
    assert rounds.parts.recipe().passes == ({"local": 0.5, "anchor": 0.5},)


def test_the_mean_is_uniform(federate: Federate) -> None:
    rounds = federate().go()
    sent = [rounds.sent(client) for client in "ab"]
    for key, value in rounds.reply("a").items():
        assert torch.allclose(value, (sent[0][key] + sent[1][key]) / 2, atol=1e-7)


def test_three_passes_serve_both_updates(federate: Federate) -> None:
    """A pass of the teacher without gradient and one of each model with it: 5/2 of `sft`; no second backbone."""
    rounds = federate(clients=1)
    model = rounds.worker.host("tiny-llama-s").backbone.model
    passes: list[bool] = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    rounds.go()
    passes = passes[-6:]  # the last two of three batches; the ledger's dry rows come with the first
    assert passes == [False, True, True] * 2
    assert list(rounds.worker._hosts) == ["tiny-llama-s"]


def test_the_published_direction_is_another_run(federate: Federate) -> None:
    runs = [federate(clients=1, **{"objective.options.official_kl": how}).go(2) for how in ("false", "true")]
    first, second = (rounds.state("a", "local/*/B") for rounds in runs)
    assert any(not torch.equal(first[key], second[key]) for key in first)
