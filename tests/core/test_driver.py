"""The torch stepper and the schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.training.driver import TorchDriver, rate_factor
from pfl_platform.training.surfaces import Optim


def test_one_adamw_step_by_hand() -> None:
    # g = 3, first step: m/(1-b1) = 3, v/(1-b2) = 9, so the step is lr * 3 / (3 + eps) = lr.
    tensor = torch.tensor([1.0], requires_grad=True)
    stepper = TorchDriver().open("p.s", {"a/b/c": tensor}, Optim(lr=0.1, clip=0.0), {})
    stepper.backward(3 * tensor.sum())
    stepper.update(0)
    assert tensor.item() == pytest.approx(0.9, abs=1e-6)


def test_clipping_scales_the_gradient() -> None:
    # Two params with gradient (3, 4): norm 5, clipped to 1 the gradient is (0.6, 0.8); AdamW's first moment shows it.
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    stepper = TorchDriver().open("s", {"a": a, "b": b}, Optim(lr=0.1, clip=1.0), {})
    stepper.backward(3 * a.sum() + 4 * b.sum())
    stepper.update(0)
    moments = stepper.moments()
    assert moments["moments/s/a#1"].item() == pytest.approx(0.06, rel=1e-4)  # (1 - 0.9) * 0.6
    assert moments["moments/s/b#1"].item() == pytest.approx(0.08, rel=1e-4)


def test_rates_by_key() -> None:
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optim = Optim(lr=0.1, lr_scale=((Keys("fast/*"), 5.0),), clip=0.0)
    stepper = TorchDriver().open("s", {"fast/a": a, "slow/b": b}, optim, {})
    stepper.backward(a.sum() + b.sum())
    stepper.update(0)
    assert a.item() == pytest.approx(-0.5, abs=1e-5)
    assert b.item() == pytest.approx(-0.1, abs=1e-5)


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_kept_moments_go_on_bit_for_bit(moments: str) -> None:
    def steps(tensor: Tensor, count: int, private: dict[str, Tensor], first: int) -> dict[str, Tensor]:
        optim = Optim(lr=0.1, moments=moments)  # type: ignore[arg-type]
        stepper = TorchDriver().open("s", {"k": tensor}, optim, private)
        for index in range(count):
            stepper.backward((tensor * torch.arange(1.0, 4.0) * (first + index + 1)).sin().sum())
            stepper.update(index)
        return dict(stepper.moments())

    straight, pieces = (torch.ones(3, requires_grad=True) for _ in range(2))
    steps(straight, 4, {}, 0)
    steps(pieces, 2, steps(pieces, 2, {}, 0), 2)
    assert torch.equal(straight, pieces) == (moments == "keep")


def test_schedule() -> None:
    optim = Optim(1.0, schedule="cosine", warmup=2, total_steps=6)
    found = [rate_factor(optim, step) for step in range(7)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-5)
    assert [rate_factor(Optim(1.0), step) for step in (0, 99)] == [1.0, 1.0]


def test_moments_of_keys_that_are_reset_do_not_survive() -> None:
    optim = Optim(lr=0.1, clip=0.0, reset=Keys("a"))
    pair = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    stepper = TorchDriver().open("s", pair, optim, {})
    stepper.backward(pair["a"].sum() + pair["b"].sum())
    stepper.update(0)
    moments = stepper.moments()
    assert {key.partition("#")[0] for key in moments} == {"moments/s/b", "moments/s/count"}
    stale = {**moments, "moments/s/a#1": torch.full((2,), 9.0), "moments/s/a#2": torch.full((2,), 9.0)}
    again = TorchDriver().open("s", pair, optim, stale)
    before = {key: value.detach().clone() for key, value in pair.items()}
    again.backward(pair["a"].sum() + pair["b"].sum())
    again.update(0)
    assert torch.allclose(before["a"] - pair["a"], torch.full((2,), 0.1))  # Adam's first step has the size of its rate
