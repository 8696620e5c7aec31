"""FFA-LoRA and FedSA-LoRA: what is trained, what travels, and what the average then is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from federation_support import Federate, federating
from pfl_platform.errors import UserError
from pfl_platform.testing.rounds import Rounds


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "ffa-lora", "training.lr=0.01")


def products(tensors: Mapping[str, Tensor], slot: str) -> dict[str, Tensor]:
    """Site -> B A in float64."""
    sites = sorted(key.split("/")[1] for key in tensors if key.startswith(f"{slot}/") and key.endswith("/A"))
    return {site: tensors[f"{slot}/{site}/B"].double() @ tensors[f"{slot}/{site}/A"].double() for site in sites}


def error_of_the_average(rounds: Rounds) -> float:
    """Largest entry of `mean(B) mean(A) - mean(B A)` over the sites, relative to the largest of the mean."""
    examples = [client.num_examples for client in rounds.fed.clients]
    weights = [size / sum(examples) for size in examples]
    trained = [products(rounds.state(client, "global/*"), "global") for client in "ab"]
    server = products({**rounds.state("a", "global/*"), **rounds.reply("a")}, "global")
    worst = 0.0
    for site, merged in server.items():
        exact = sum(weight * each[site] for weight, each in zip(weights, trained, strict=True))
        assert isinstance(exact, Tensor)
        assert exact.abs().max() > 0
        worst = max(worst, float((merged - exact).abs().max() / exact.abs().max()))
    return worst


def test_ffa_averages_exactly_where_fedit_does_not(federate: Federate) -> None:
    assert error_of_the_average(federate("ffa-lora").go(2)) < 1e-6
    assert error_of_the_average(federate("fedit").go(2)) > 1e-4


def test_ffa_sends_b_alone_and_never_touches_a(federate: Federate) -> None:
    rounds = federate("ffa-lora", clients=3)
    start = {client: rounds.state(client, "global/*/A") for client in "abc"}
    assert all(torch.equal(start["a"][key], start["b"][key]) for key in start["a"])
    rounds.go(2)
    for client in "abc":
        sent, received = rounds.sent(client), rounds.received(client)
        assert sent
        assert all(key.endswith("/B") for key in (*sent, *received))
        after = rounds.state(client, "global/*/A")
        assert all(torch.equal(after[key], start[client][key]) for key in after)
        sites = rounds.fed.adapter.sites(rounds.fed.load(rounds.fed.backbone_of[client]))
        cost = rounds.outcomes[client].cost
        assert cost.up_payload == cost.down_payload == 4 * 4 * sum(site.out_features for site in sites)


def test_fedsa_shares_a_and_keeps_b(federate: Federate) -> None:
    rounds = federate("fedsa-lora", clients=3).go()
    trained = {client: rounds.state(client, "local/*") for client in "ab"}
    moments = rounds.state("a", "moments/*")
    rounds.go()
    sites = rounds.fed.adapter.sites(rounds.fed.load(rounds.fed.backbone_of["a"]))
    examples = [rounds.fed.clients[k].num_examples for k in range(2)]
    for client in "abc":
        assert all(key.endswith("/A") for key in (*rounds.sent(client), *rounds.received(client)))
    for key, value in rounds.received("a").items():
        mean = sum(size * trained[client][key].double() for size, client in zip(examples, "ab", strict=True))
        assert torch.allclose(value.double(), mean / sum(examples), atol=1e-7)
    own = [rounds.state(client, "local/*/B") for client in "ab"]
    assert any(not torch.equal(own[0][key], own[1][key]) for key in own[0])
    assert rounds.outcomes["a"].cost.up_payload == 4 * 4 * sum(site.in_features for site in sites)
    # B goes on with its moments; A, which was replaced, does not.
    assert {key.rpartition("#")[0][-1] for key in moments if "#" in key} == {"B"}


@pytest.mark.parametrize("method", ["ffa-lora", "fedsa-lora"])
def test_ranks_that_differ_are_refused(federate: Federate, method: str) -> None:
    with pytest.raises(UserError, match=r"combines adapters, which must be of one shape, but that of client 'a'"):
        federate(method, own={"a": {"r": 2}})
    with pytest.raises(UserError, match=r"works with the adapters lora"):
        federate(method, **{"adapter.name": "pqlora"})
