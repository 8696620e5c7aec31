"""Losses that are looked at one step late: what is said of them, and who is asked."""

from __future__ import annotations

import math

import pytest
import torch

from pfl_platform.errors import RunStopped
from pfl_platform.training.driver import Portion, TorchDriver
from pfl_platform.training.seen import Losses


class Shared(TorchDriver):
    """A driver of two processes that share a batch, which notes whatever it is asked for."""

    portion = Portion(0, 2)

    def __init__(self) -> None:
        self.asked: list[float] = []

    def total(self, value: float) -> float:
        self.asked.append(value)
        return value + 3.0


def losses(driver: TorchDriver | None = None) -> Losses:
    return Losses("alice", "p", 3, driver or TorchDriver(), [])


def test_a_step_is_looked_at_when_the_next_one_is_there_and_the_last_in_the_end() -> None:
    told: list[tuple[int, int, float]] = []
    with Losses("alice", "p", 2, TorchDriver(), [], lambda *said: told.append(said)) as seen:
        seen.add(0, [torch.tensor(1.0), torch.tensor(0.5)], last=False)
        seen.add(0, [torch.tensor(2.0)], last=True)  # the batch's other step
        assert told == []
        seen.add(1, [torch.tensor(4.0)], last=True)
        assert told == [(0, 2, 2.0)]
    assert told == [(0, 2, 2.0), (1, 2, 4.0)]
    assert seen.found == [2.0, 4.0]


def test_a_number_is_that_of_its_step_whatever_becomes_of_the_tensor() -> None:
    """A penalty may be a view of a param, which the optimiser changes in place."""
    param = torch.tensor([1.0, 2.0])
    with losses() as seen:
        seen.add(0, [param[1]], last=True)
        param.zero_()
    assert seen.found == [2.0]


def test_those_who_share_a_batch_are_asked_for_their_parts() -> None:
    driver = Shared()
    with losses(driver) as seen:
        seen.add(0, [torch.tensor(1.0)], last=True)
    assert (driver.asked, seen.found) == ([1.0], [2.0])


def broken(driver: TorchDriver, loss: float, error: BaseException) -> None:
    with losses(driver) as seen:
        seen.add(1, [torch.tensor(loss)], last=True)
        raise error


def test_nobody_is_asked_when_something_has_gone_wrong() -> None:
    """The others are somewhere else by then: whoever asked them would wait, or get what is meant for another."""
    driver = Shared()
    with pytest.raises(ValueError, match="broken"):
        broken(driver, 1.0, ValueError("broken"))
    with pytest.raises(RunStopped, match="The loss of alice is nan in phase 'p' at local step 1"):
        broken(driver, math.nan, ValueError("it stumbled over that"))
    assert driver.asked == []


def test_an_interruption_is_not_looked_behind() -> None:
    with pytest.raises(KeyboardInterrupt):
        broken(TorchDriver(), math.nan, KeyboardInterrupt())
