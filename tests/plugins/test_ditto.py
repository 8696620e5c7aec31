"""Ditto: the regulariser on numbers that can be redone, and both adapters inside a federation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from federation_support import Federate, federating
from pfl_platform.errors import UserError
from pfl_platform.federation.components import combine
from pfl_plugins.ditto import objective
from pfl_plugins.ditto.equations import proximal


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "ditto")


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def gap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return float(sum((a - b).square().sum() for a, b in zip(first.values(), second.values(), strict=True)))


def test_the_regulariser_pulls_with_lambda_times_the_distance() -> None:
    v = {"A": torch.tensor([1.0, 4.0], requires_grad=True), "B": torch.tensor([[2.0]], requires_grad=True)}
    w = {"A": torch.tensor([1.0, 1.0]), "B": torch.tensor([[0.5]])}
    value = proximal(v, w, 2.0)
    value.backward()
    assert value.item() == pytest.approx(2.0 / 2 * (0 + 9 + 2.25))
    assert v["A"].grad is not None
    assert v["A"].grad.tolist() == [0.0, 6.0]  # lambda (v - w) = 2 (4 - 1)
    assert v["B"].grad is not None
    assert v["B"].grad.item() == pytest.approx(3.0)


def test_the_anchor_is_the_download_and_stays_through_the_round(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors: list[dict[str, Tensor]] = []

    def watched(params: Mapping[str, Tensor], given: Mapping[str, Tensor], lam: float) -> Tensor:
        anchors.append({key: value.clone() for key, value in given.items()})
        return proximal(params, given, lam)

    monkeypatch.setattr(objective, "proximal", watched)
    rounds = federate(clients=1).go()
    anchors.clear()
    rounds.go()
    received = [value for key, value in rounds.received("a").items() if key.startswith("global/")]
    moved = list(rounds.sent("a").values())
    assert len(anchors) == 3  # local steps
    for anchor in anchors:
        assert all(torch.equal(one, other) for one, other in zip(anchor.values(), received, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(moved, received, strict=True))


def test_the_two_adapters_are_fedit_and_without_lambda_sft(federate: Federate) -> None:
    """On the same batches w is what FedIT trains, whatever lambda is, and v at lambda = 0 is what SFT trains."""
    free, pulled = (federate(**{"objective.options.lam": lam}).go(2) for lam in (0.0, 5.0))
    alone, averaged = (federate(method).go(2) for method in ("sft", "fedit"))
    for client in "ab":
        assert equal(free.state(client, "local/*"), alone.state(client, "local/*"))
        assert not equal(pulled.state(client, "local/*"), alone.state(client, "local/*"))
        for rounds in (free, pulled):
            assert equal(rounds.state(client, "global/*"), averaged.state(client, "global/*"))


def test_a_stronger_pull_keeps_the_personal_adapter_nearer(federate: Federate) -> None:
    gaps = []
    for lam in (0.0, 10.0):
        rounds = federate(clients=1, **{"objective.options.lam": lam, "local_steps": 8}).go()
        start = federate(clients=1).state("a", "global/*")
        gaps.append(gap(rounds.state("a", "local/*"), start))
    assert gaps[1] < 0.7 * gaps[0]


def test_a_client_may_have_a_lambda_of_its_own(federate: Federate) -> None:
    common, own = (federate(**{"objective.options.lams": lams}).go(2) for lams in ("{}", "{a: 0}"))
    assert equal(own.state("b", "local/*"), common.state("b", "local/*"))
    assert equal(own.state("a", "local/*"), federate("sft").go(2).state("a", "local/*"))
    with pytest.raises(UserError, match=r"lams names 'z', which is no client"):
        federate(**{"objective.options.lams": "{z: 1}"})


def test_personal_adapters_stay_at_home_unless_the_published_leak_is_asked_for(federate: Federate) -> None:
    right, leaking = (federate(**{"objective.options.official_leak": leak}).go() for leak in ("false", "true"))
    assert {key.split("/")[0] for key in right.sent("a")} == {"global"}
    assert {key.split("/")[0] for key in leaking.sent("a")} == {"global", "local"}
    trained = [leaking.state(client, "local/*") for client in "ab"]
    examples = [client.num_examples for client in leaking.fed.clients]
    mean = combine(trained, [size / sum(examples) for size in examples])
    before = {client: right.state(client, "local/*") for client in "ab"}
    leaking.go()
    right.go()
    for client in "ab":
        received = leaking.received(client)
        assert equal({key: value for key, value in received.items() if key.startswith("local/")}, mean)
        assert not equal(before[client], mean)
        assert not any(key.startswith("local/") for key in right.received(client))


def test_who_comes_late_starts_from_the_newest_average(federate: Federate) -> None:
    rounds = federate(clients=4, **{"cohort": 1})
    backbone = rounds.fed.backbone_of
    joined: set[str] = set()
    latecomers = 0
    for _ in range(8):
        waiting = {client: rounds.reply(client) for client in "abcd"}
        rounds.go()
        (client,) = rounds.tasks
        assert equal(rounds.received(client), waiting[client])
        late = client not in joined and any(backbone[other] == backbone[client] for other in joined)
        assert not late or rounds.received(client)
        latecomers += late
        joined.add(client)
    assert latecomers
