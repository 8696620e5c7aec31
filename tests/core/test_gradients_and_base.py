"""Gradients that statistics ask for, and the delta that is always on in a backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.host import Host, factored
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.data import Sample, Turn
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Statistic, Step, View, Want
from pfl_platform.training.view import BatchView

SAMPLES = [Sample(str(k), (Turn(f"Say {word}.", word),)) for k, word in enumerate(("red", "blue", "big", "left"))]
LOCAL = Keys("local/*/A", "local/*/B")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def host() -> Host:
    manager = PluginManager()
    adapter = manager.make("adapter", "lora", {"r": 2})
    host = Host(manager.make("backbone", "tiny-llama-s", {"init": 0}), adapter, (Slot("local"), Slot("second")))
    first = adapter.initial(host.backbone, "local", 0)
    generator = torch.Generator().manual_seed(3)
    host.load({key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in first.items()})
    return host


def actor(host: Host) -> Actor:
    return Actor("alice", "tiny", lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())


class Squares(Statistic):
    """The mean of squared gradients of B, one sample at a time: a diagonal Fisher."""

    name = "squares"
    wants = (Want("loss", Keys("local/*/B"), answers_under({"local": 1.0})),)

    def __init__(self, every: int | None) -> None:
        self.every = every
        if every is None:
            self.data, self.amount = Epochs(SAMPLES, 4, 0, "pass"), 1
        self.rows: list[int] = []

    def add(self, acc: Any, view: View) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.rows.append(len(view.samples))
        found = {key: value.square() for key, value in view.gradients["loss"].items()}
        return found if acc is None else {key: acc[key] + value for key, value in found.items()}

    def finish(
        self, acc: dict[str, Tensor], private: Tensors, rng: Callable[..., torch.Generator]
    ) -> tuple[Tensors, Tensors]:
        return {f"squares/{key}": value / len(SAMPLES) for key, value in acc.items()}, {}


def by_hand(host: Host) -> dict[str, Tensor]:
    chosen = host.select(Keys("local/*/B"))
    total = {key: torch.zeros_like(value) for key, value in chosen.items()}
    for sample in SAMPLES:
        view = BatchView(lambda _: host, "tiny", [sample], step=0, rng=lambda *_: torch.Generator())
        loss = answers_under({"local": 1.0})(view).sum()
        for key, gradient in zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True):
            total[key] += gradient.square() / len(SAMPLES)
    host.select(Keys())
    return total


def test_gradients_come_one_sample_at_a_time(host: Host) -> None:
    expected = by_hand(host)
    statistic = Squares(None)
    done = train(actor(host), (), (statistic,))
    assert statistic.rows == [1] * len(SAMPLES)
    assert set(done.sent) == {f"squares/{key}" for key in expected}
    for key, value in expected.items():
        assert torch.allclose(done.sent[f"squares/{key}"], value, rtol=1e-5, atol=1e-12)
    assert not any(tensor.requires_grad for tensor in host.params.values())


def test_a_statistic_that_wants_gradients_leaves_training_as_it_is(host: Host) -> None:
    start = host.read(sorted(host.params))
    phase = Phase("p", (Step(LOCAL, answers_under({"local": 1.0}), Optim(0.01)),), 4, Epochs(SAMPLES, 2, 0, "training"))
    ends = []
    for statistics in ((), (Squares(2),)):
        host.load(start)
        train(actor(host), (phase,), statistics)
        ends.append(host.read(sorted(host.params)))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_base_is_on_in_every_pass_until_it_is_taken_off(host: Host) -> None:
    site = next(iter(host.layers))
    layer = host.layers[site]
    x = torch.randn(2, 3, layer.site.in_features, generator=torch.Generator().manual_seed(0))
    shift = torch.randn(layer.site.out_features, layer.site.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare = layer(x)
        with host.mixing({"local": 1.0}):
            mixed = layer(x)
        host.load_base("here", lambda _: {f"base/{site}/W": shift})
        assert torch.allclose(layer(x), bare + x @ shift.T, atol=1e-5)
        with host.mixing({"local": 1.0}):
            assert torch.allclose(layer(x), mixed + x @ shift.T, atol=1e-5)
        host.load_base("here", lambda _: pytest.fail("the same base was read twice"))
        host.load_base(None, lambda _: {})
        assert torch.equal(layer(x), bare)


def test_the_gradient_of_a_whole_map_is_that_of_its_weight(host: Host) -> None:
    """With a base and without; one sample at a time, with the adapters on."""
    first, second, *_ = host.layers
    shift = torch.randn(host.layers[first].weight.shape, generator=torch.Generator().manual_seed(1)) / 50
    host.load_base("here", lambda _: {f"base/{first}/W": shift})
    found: dict[str, Tensors] = {}

    class Dense(Statistic):
        name, every, data, amount = "dense", None, Epochs(SAMPLES, 4, 0, "pass"), 1
        wants = (Want("loss", Keys(f"base/{first}/W", f"base/{second}/W"), answers_under({"local": 1.0})),)

        def add(self, acc: Any, view: View) -> Any:
            found[view.samples[0].id] = dict(view.gradients["loss"])

        def finish(self, acc: Any, private: Tensors, rng: Any) -> tuple[Tensors, Tensors]:
            return {}, {}

    with host.dense():
        train(actor(host), (), (Dense(),))
    assert torch.equal(host.layers[first].shift, shift)  # type: ignore[arg-type]
    assert host.layers[second].shift is None
    weights = {name: host.layers[name].weight.requires_grad_(True) for name in (first, second)}
    assert len(found) == len(SAMPLES)
    for sample in SAMPLES:
        view = BatchView(lambda _: host, "tiny", [sample], step=0, rng=lambda *_: torch.Generator())
        loss = answers_under({"local": 1.0})(view).sum()
        for name, expected in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            assert expected.any()
            own = found[sample.id][f"base/{name}/W"]
            assert torch.allclose(own, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_dense_delta_as_factors() -> None:
    assert factored(None) is None
    assert factored(torch.zeros(3, 2)) is None
    dense = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 0]])
    found = factored(dense)
    assert found is not None
    assert found.u.shape == (7, 2)  # no more than its rank
    assert torch.allclose(found.dense(), dense, atol=1e-5)
