"""The losses of a phase's steps, looked at one step late.

Asking a device for a number waits for all that it has been given to do. The loss of a step is asked for when the next
step has been given, so that the device always has something to do while we look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pfl_platform.errors import RunStopped
from pfl_platform.training.driver import Driver

StepObserver = Callable[[int, int, float], None]
"""(step, amount, loss)"""


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
    _waiting: tuple[int, Sequence[Tensor], bool] | None = field(default=None, init=False)

    def __enter__(self) -> Losses:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.look()

    def add(self, index: int, loss: Sequence[Tensor], *, last: bool) -> None:
        """Takes the loss of a step on batch `index`, scalars that are to be added, and looks at the one before. last:
        whether it is the batch's last step. Raises as `look`."""
        self.look()
        self._waiting = (index, loss, last)

    def look(self) -> None:
        """Looks at what is waiting. Raises `RunStopped` where it is not finite."""
        if self._waiting is None:
            return
        (index, parts, last), self._waiting = self._waiting, None
        loss = sum(float(part) for part in parts)
        if self.driver.portion.of > 1:
            loss = self.driver.total(loss) / self.driver.portion.of
        if not math.isfinite(loss):
            raise RunStopped(
                f"The loss of {self.actor} is {loss} in phase '{self.phase}' at local step {index}: "
                "lower its learning rate or look at its data."
            )
        if last:
            self.found.append(loss)
            if self.observe is not None:
                self.observe(index, self.amount, loss)
