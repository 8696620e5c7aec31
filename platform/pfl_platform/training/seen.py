"""The losses of a phase's steps, looked at one step late.

Asking a device for a number waits for all that it has been given to do. So a loss is on its way to the processor as
soon as it is there, and is looked at when the next step has been given: the device always has something to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_platform.errors import RunStopped
from pfl_platform.training.driver import Driver

StepObserver = Callable[[int, int, float], None]
"""(step, amount, loss)"""


class _Number:
    """The sum of scalars, on its way from whatever device they are on; they may be written to from now on."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = [part.to("cpu", non_blocking=True, copy=True) for part in parts]
        self._there = [torch.Event(device) for device in {part.device for part in parts} if device.type != "cpu"]
        for event in self._there:
            event.record()

    def __float__(self) -> float:
        for event in self._there:
            event.synchronize()
        return sum(float(part) for part in self._parts)


@dataclass
class Losses:
    """Of `amount` batches in the phase `phase` of `actor`. found: of every batch, that of its last step.

    Used as a context, it looks at what is still waiting in the end. That is so, too, where something has gone wrong: a
    step that follows a loss of NaN may stumble over it, and the loss is what there is to say.
    """

    actor: str
    phase: str
    amount: int
    driver: Driver
    found: list[float]
    observe: StepObserver | None = None
    _waiting: tuple[int, _Number, bool] | None = field(default=None, init=False)

    def __enter__(self) -> Losses:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.look()
        elif issubclass(kind, Exception) and self._waiting is not None:
            # Whoever shares the batch is somewhere else by now, so nobody is asked for his part.
            index, number, _last = self._waiting
            self._refuse(index, float(number))

    def add(self, index: int, loss: Sequence[Tensor], *, last: bool) -> None:
        """Takes the loss of a step on batch `index`, scalars that are to be added, and looks at the one before. last:
        whether it is the batch's last step. Raises as `look`."""
        number = _Number(loss)
        self.look()
        self._waiting = (index, number, last)

    def look(self) -> None:
        """Looks at what is waiting. Raises `RunStopped` where it is not finite."""
        if self._waiting is None:
            return
        (index, number, last), self._waiting = self._waiting, None
        loss = float(number)
        if self.driver.portion.of > 1:
            loss = self.driver.total(loss) / self.driver.portion.of
        self._refuse(index, loss)
        if last:
            self.found.append(loss)
            if self.observe is not None:
                self.observe(index, self.amount, loss)

    def _refuse(self, index: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise RunStopped(
                f"The loss of {self.actor} is {loss} in phase '{self.phase}' at local step {index}: "
                "lower its learning rate or look at its data."
            )
