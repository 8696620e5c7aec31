"""What holds for every method with two or more adapters at a client: one backbone, whatever it does with them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from pfl_platform.backbones import Backbone
from pfl_platform.testing import Bench
from pfl_platform.testing.rounds import Rounds


def embeddings_like(backbone: Backbone) -> int:
    """How many params of this process have the shape of the backbone's embedding; other tests' models among them."""
    gc.collect()
    shape = backbone.model.get_input_embeddings().weight.shape  # type: ignore[operator]
    return sum(type(thing) is torch.nn.Parameter and thing.shape == shape for thing in gc.get_objects())


METHODS = ("ditto", "fedsim", "partial-fedalt", "fedalt", "feddat", "feddpa")


@pytest.mark.parametrize("method", [*METHODS, "perada", "potara", "fishermerge", "fedmosaic"])
def test_no_second_backbone_is_held(method: str, tmp_path: Path) -> None:
    """Neither another host nor another copy of the weights, before or after a round."""
    bench = Bench(method, tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"])
    rounds = Rounds(bench, clients=2, local_steps=2)
    held = [id(layer.base.weight) for layer in rounds.worker.host("tiny-llama-s").layers.values()]
    before = embeddings_like(rounds.worker.host("tiny-llama-s").backbone)
    rounds.go(2)
    assert embeddings_like(rounds.worker.host("tiny-llama-s").backbone) == before
    assert list(rounds.worker._hosts) == ["tiny-llama-s"]
    host = rounds.worker.host("tiny-llama-s")
    assert [id(layer.base.weight) for layer in host.layers.values()] == held
    slots = {key.split("/")[0] for key in host.params}
    assert len(slots & {"global", "local", "anchor", "row"}) >= 2
    assert set(rounds.tasks["a"].others) <= {"tiny-llama-s"}  # whose gradients tell how clients are related


@pytest.mark.parametrize("method", METHODS)
def test_params_that_mean_the_same_everywhere_cross_backbones(method: str, tmp_path: Path) -> None:
    """Clients a and b have one backbone and c another: what all can use is averaged over the three."""
    bench = Bench(method, tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"])
    rounds = Rounds(bench, local_steps=2, **{"adapter.name": "pqlora", "adapter.options.blocks": 2}).go()
    sent = {client: rounds.sent(client) for client in "abc"}
    common = sorted(key for key in sent["a"] if key.split("/")[1].startswith("block"))
    assert common
    assert all(sent[client].keys() >= set(common) for client in "bc")
    examples = {client.client_id: client.num_examples for client in rounds.fed.clients}
    for client in "ac":
        among = {"fedalt": {other: 1 for other in "abc" if other != client}, "feddat": dict.fromkeys("abc", 1)}
        among["feddpa"] = among["feddat"]
        weight = among.get(method, examples)
        reply = {key.partition("/")[2]: value for key, value in rounds.reply(client).items()}
        for key in common:
            total = sum(size * sent[other][key].double() for other, size in weight.items())
            mean = torch.as_tensor(total) / sum(weight.values())
            assert torch.allclose(reply[key.partition("/")[2]].double(), mean, atol=1e-7)
