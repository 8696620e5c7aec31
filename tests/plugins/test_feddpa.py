"""FedDPA: its weights on numbers that can be redone, and both variants round by round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from federation_support import Federate, federating
from pfl_platform.backbones import IGNORE, Encoded
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import HostPrompts
from pfl_platform.federation.rounds import context
from pfl_platform.testing.rounds import Rounds
from pfl_platform.training.view import BatchView
from pfl_plugins.feddpa.config import WeightConfig
from pfl_plugins.feddpa.equations import instance_weights
from pfl_plugins.feddpa.personalizer import OWN, InstanceWeights, embeddings


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "feddpa", "training.lr=0.01")


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return [key.partition("/")[2] for key in first] == [key.partition("/")[2] for key in second] and all(
        torch.equal(one, other) for one, other in zip(first.values(), second.values(), strict=True)
    )


def mixes_of(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """(slot that trains, mix) of every step of the rounds that follow."""
    seen: list[tuple[str, Any]] = []
    forward = BatchView.forward

    def watched(self: BatchView, mix: Any, **options: Any) -> Any:
        trains = {key.split("/")[0] for key, value in self.params.items() if value.requires_grad}
        if options.get("grad", True):
            seen.append((*trains, mix))  # type: ignore[arg-type]
        return forward(self, mix, **options)

    monkeypatch.setattr(BatchView, "forward", watched)
    return seen


def test_the_weight_rises_with_similarity() -> None:
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    questions = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [-1.0, -1.0]])
    found = instance_weights(questions, own, 0.5)
    assert found.tolist() == pytest.approx([0.5 * 0.5**0.5, 0.25, 0.0, 0.0])
    assert instance_weights(own[:1], own[:1], 1.0).item() == pytest.approx(1.0)


def test_a_question_ends_before_the_first_supervised_token() -> None:
    states = torch.arange(8.0).reshape(2, 4, 1)
    mask = {"attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    taught = torch.tensor([[IGNORE, IGNORE, 7, IGNORE], [IGNORE, 7, 7, IGNORE]])
    assert embeddings(states, Encoded(mask, taught, [], [])).flatten().tolist() == [1.0, 4.0]
    asked = torch.full((2, 4), IGNORE)
    assert embeddings(states, Encoded(mask, asked, [], [])).flatten().tolist() == [3.0, 7.0]


def test_a_question_has_the_same_embedding_with_and_without_its_answer(federate: Federate) -> None:
    rounds = federate().go()
    host = rounds.worker.host("tiny-llama-s")
    host.load(rounds.state("a"))
    samples = rounds.fed.clients[0].tasks[0].train[:3]
    head = host.backbone.head
    asked = HostPrompts(host, samples).forward({"local": 1.0}, taps=(head,))
    view = BatchView(lambda _: host, "tiny-llama-s", samples, step=0, rng=lambda *_: torch.Generator())
    told = view.forward({"local": 1.0}, grad=False, train=False, taps=(head,))
    pair = [embeddings(output.taps[head], output.encoded) for output in (asked, told)]
    assert torch.allclose(*pair, atol=1e-4)
    assert asked.logits.shape[1] == 1


def test_own_questions_weigh_more_than_strange_ones_and_the_published_sign_turns_it_round(federate: Federate) -> None:
    rounds = federate()
    host = rounds.worker.host("tiny-llama-s")
    host.load(rounds.state("a"))
    samples = rounds.fed.clients[0].tasks[0].train[:2]
    head = host.backbone.head
    prompts = HostPrompts(host, samples)
    output = prompts.forward({"local": 1.0}, taps=(head,))
    states = embeddings(output.taps[head], output.encoded)
    state = {OWN: states[:1]}
    (mix,) = InstanceWeights(WeightConfig(w_max=0.5)).mixed(prompts, state)
    assert isinstance(mix, Mapping)
    local, shared = torch.as_tensor(mix["local"]), torch.as_tensor(mix["global"])
    assert local[0].item() == pytest.approx(0.5, abs=1e-5)  # the very question
    assert local[1] < local[0]
    assert torch.allclose(local + shared, torch.ones(2))
    (turned,) = InstanceWeights(WeightConfig(w_max=0.5, official_sign=True)).mixed(prompts, state)
    assert isinstance(turned, Mapping)
    assert torch.allclose(torch.as_tensor(turned["global"]), local)


def test_variant_t_trains_local_beside_the_received_global_and_then_global_alone(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = federate(clients=1, rounds=3, local_steps=5, **{"objective.options.alpha": 0.25})
    seen = mixes_of(rounds, monkeypatch)
    rounds.go()
    assert next(entry for entry in seen if entry[0] == "local") == ("local", {"local": 1.0})
    seen.clear()
    before = rounds.state("a", "global/*")
    rounds.go()
    local, shared = rounds.parts.objective.phases(context(rounds.fed, rounds.fed.clients[0], 1))
    assert (local.name, local.amount, shared.name, shared.amount, shared.first) == ("local", 2, "global", 3, 2)
    assert {str(entry) for entry in seen} == {
        str(("local", {"local": 0.25, "global": 0.75})),
        str(("global", {"global": 1.0})),
    }
    assert [entry[0] for entry in seen] == sorted((entry[0] for entry in seen), reverse=True)  # local first
    assert not equal(before, rounds.state("a", "global/*"))
    assert {key.split("/")[0] for key in rounds.sent("a")} == {"global"}


def test_the_published_order_trains_global_first(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = federate(clients=1, **{"objective.options.order": "official_global_first"})
    seen = mixes_of(rounds, monkeypatch)
    rounds.go()
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)
    assert seen[-1] == ("local", {"local": 0.5, "global": 0.5})  # in round 0 already


def test_the_published_leak_overwrites_local_adapters(federate: Federate) -> None:
    right, leaking = (federate(**{"objective.options.official_leak": leak}).go(2) for leak in ("false", "true"))
    assert {key.split("/")[0] for key in right.received("a")} == {"global"}
    pair = [{k: v for k, v in leaking.received(client).items() if k.startswith("local/")} for client in "ab"]
    assert pair[0]
    assert equal(*pair)


def test_variant_f_is_fedit_until_it_fine_tunes_and_then_exchanges_nothing(federate: Federate) -> None:
    options = {"rounds": 4, "objective.options.variant": "F", "objective.options.tune_rounds": 2}
    rounds = federate(**options).go(2)
    averaged = federate("fedit", rounds=4, **{"aggregator.options.weighting": "uniform"}).go(2)
    for client in "ab":
        assert equal(rounds.state(client, "global/*"), averaged.state(client, "global/*"))
        assert equal(rounds.state(client, "local/*"), averaged.state(client, "global/*"))  # the personal model so far
    final = averaged.reply("a")
    rounds.go()
    for client in "ab":
        assert equal(rounds.received(client), final)
        assert rounds.sent(client) == {}
        assert equal(rounds.state(client, "global/*"), final)
        assert not equal(rounds.state(client, "local/*"), final)
        assert rounds.outcomes[client].cost.up_payload == 0
    tuned = rounds.state("a", "local/*")
    rounds.go()
    assert rounds.received("a") == {}
    assert not equal(rounds.state("a", "local/*"), tuned)
    assert not equal(rounds.state("a", "local/*"), rounds.state("b", "local/*"))


def test_evaluation_measures_own_questions_and_keeps_them_at_the_client(federate: Federate) -> None:
    rounds = federate(**{"evaluation.every": 1}).go(2)
    width = rounds.worker.host("tiny-llama-s").backbone.module("lm_head").weight.shape[1]
    assert rounds.state("a")[OWN].shape[1] == width
    assert 1 <= len(rounds.state("a")[OWN]) <= 5
    assert OWN not in rounds.sent("a")
    assert rounds.outcomes["a"].scores
    static = federate(**{"evaluation.every": 1, "personalizer.options.weights": "static"}).go()
    assert OWN not in static.state("a")
    assert static.parts.recipe().passes == ({"local": 0.5, "global": 0.5},)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"local_steps": 1}, r"leaves nothing for FedDPA-T's second adapter"),
        ({"objective.options.variant": "F", "rounds": 1}, r"there is no global adapter to start from"),
        ({"objective.options.variant": "F", "cohort": 1}, r"fine-tunes at every client in its last rounds"),
        (
            {"objective.options.variant": "F", "objective.options.official_leak": "true"},
            r"official_leak is for variant T",
        ),
        ({"objective.name": "fedit"}, r"weighs the two adapters of the objective 'feddpa' only"),
    ],
)
def test_what_cannot_work_is_refused(federate: Federate, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(**options)
