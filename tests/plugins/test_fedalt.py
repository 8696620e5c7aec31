"""FedALT of 2503.11880: the mixer, and the mean over the others on numbers that can be redone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from federation_support import Federate, federating
from pfl_platform.adapters.surfaces import Site
from pfl_platform.federation.components import ServerState
from pfl_plugins.fedalt.config import RestConfig
from pfl_plugins.fedalt.mixer import TokenMixer
from pfl_plugins.fedalt.rest import RestOfWorld


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "fedalt", "training.lr=0.01")


def test_the_mixer_is_a_softmax_for_each_token() -> None:
    mixer = TokenMixer(Site("layer0.q", "q", 2, 2))
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert mixer(x, None, None)["local"].flatten().tolist() == [0.5, 0.5]
    with torch.no_grad():
        mixer.weight.copy_(torch.tensor([[0.0, math.log(4.0)], [math.log(3.0), 0.0]]))
    shares = {slot: value.flatten().tolist() for slot, value in mixer(x, None, None).items()}
    assert shares["local"] == pytest.approx([0.75, 0.2])  # 3 / (1 + 3), 1 / (4 + 1)
    assert shares["row"] == pytest.approx([0.25, 0.8])
    assert mixer.static() is None


def test_the_rest_of_the_world_is_the_mean_of_the_others(federate: Federate) -> None:
    """Five clients, of which c has another backbone: a gets (b + d + e) / 3, and c, who is alone, nothing."""
    fed = federate(clients=5).fed
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 5.0, "e": 11.0}
    state = ServerState({name: fed.store.put({"local/layer0.q/A": torch.tensor([v])}) for name, v in values.items()})
    rest = RestOfWorld(RestConfig())
    assert rest.reply(fed, state, "a")["row/layer0.q/A"].item() == pytest.approx((2 + 5 + 11) / 3)
    assert rest.reply(fed, state, "b")["row/layer0.q/A"].item() == pytest.approx((1 + 5 + 11) / 3)
    assert rest.reply(fed, state, "c") == {}
    everyone = RestOfWorld(RestConfig(include_self=True))
    assert everyone.reply(fed, state, "a")["row/layer0.q/A"].item() == pytest.approx((1 + 2 + 5 + 11) / 4)
    # Of a client that has never sent anything nobody hears, but it hears of the others.
    fewer = ServerState({name: address for name, address in state.tensors.items() if name != "b"})
    assert rest.reply(fed, fewer, "a")["row/layer0.q/A"].item() == pytest.approx((5 + 11) / 2)
    assert rest.reply(fed, fewer, "b")["row/layer0.q/A"].item() == pytest.approx((1 + 5 + 11) / 3)


def test_what_means_the_same_everywhere_is_averaged_over_all_others(federate: Federate) -> None:
    fed = federate(clients=3).fed
    values = {"a": 1.0, "b": 2.0, "c": 4.0}
    state = ServerState({name: fed.store.put({"local/block1.q/P": torch.tensor([v])}) for name, v in values.items()})
    rest = RestOfWorld(RestConfig())
    assert [rest.reply(fed, state, name)["row/block1.q/P"].item() for name in "abc"] == [3.0, 2.5, 1.5]


def test_a_round_trains_local_and_mixer_and_leaves_the_rest_frozen(federate: Federate) -> None:
    rounds = federate(clients=2).go()
    local = {client: rounds.state(client, "local/*") for client in "ab"}
    rounds.go()
    assert {key.split("/")[0] for key in rounds.sent("a")} == {"local"}
    received = rounds.received("a")
    assert {key.split("/")[0] for key in received} == {"row"}
    for key, value in received.items():
        assert torch.equal(value, local["b"][key.replace("row/", "local/")])  # of two clients the other one's
        assert torch.equal(rounds.state("a")[key], value)  # still the same after training
    assert any(value.any() for value in rounds.state("a", "mixer/*").values())
    assert rounds.outcomes["a"].cost.down_payload == rounds.outcomes["a"].cost.up_payload
    report = rounds.progress.server.report["weights"]
    assert report["a"] == {"a": 0.0, "b": 1.0}


def test_before_anything_is_exchanged_the_rest_does_nothing(federate: Federate) -> None:
    rounds = federate(clients=1)
    assert not any(value.any() for value in rounds.state("a", "row/*/B").values())
    rounds.go(2)
    assert rounds.received("a") == {}
    assert not any(value.any() for value in rounds.state("a", "row/*/B").values())


def test_the_published_start_of_the_mixer_and_the_mixture_without_one(federate: Federate) -> None:
    official = federate(clients=1, **{"objective.options.mixer_start": "official_uniform"}).state("a", "mixer/*")
    for value in official.values():
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.8 * bound < value.abs().max() <= bound
    fixed = federate(clients=1, **{"objective.options.mixer": "fixed"})
    assert fixed.parts.objective.mix == {"row": 0.5, "local": 0.5}
    assert not fixed.state("a", "mixer/*")
    assert fixed.go(1).sent("a")
