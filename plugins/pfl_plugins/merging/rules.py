"""The surface between a paper's rule and the spaces it works in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Outcome

Bound: TypeAlias = Callable[[Operand, int], Outcome]
"""What a rule makes of one operand; the number says for which adapter, where a rule is personal."""


class Sharing(ABC):
    """A bound rule (`Bound`) that knows how much of each adapter's result came from which one."""

    @property
    @abstractmethod
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """A row per result, of sum 1."""

    @abstractmethod
    def __call__(self, operand: Operand, turn: int) -> Outcome: ...


class Rule(ABC):
    """A rule for combining K matrices.

    Rules know nothing of adapters: a space hands them operands, and makes a delta of what they give back.
    """

    def refused(self, space: str) -> str | None:
        """Why the rule is not defined in a space, as a clause; None where it is."""
        return None

    def coefficient(self, count: int) -> float:
        """The factor of the result when the user gives none, for `count` adapters."""
        return 1.0

    @property
    def personal(self) -> bool:
        """Whether every adapter gets a result of its own."""
        return False

    def statistics(self, space: str) -> tuple[str, ...]:
        """Names of the statistics that are read."""
        return ()

    @abstractmethod
    def bind(self, field: Field) -> Bound:
        """Looks at the whole field if it has to (a threshold over all modules, a norm), and is then asked operand by
        operand, in the field's order."""


def summed(weights: tuple[float, ...], *, averaged: bool) -> tuple[float, ...]:
    """Factors of a sum over K adapters, `K w_k`, which are all 1 when the weights are equal; or of their mean.

    >>> summed((0.5, 0.5), averaged=False), summed((0.5, 0.5), averaged=True)
    ((1.0, 1.0), (0.5, 0.5))
    """
    return weights if averaged else tuple(len(weights) * weight for weight in weights)


def per_adapter(values: Sequence[float], stack: Tensor) -> Tensor:
    """One number for each of the K matrices of a stack (K, ...), in a shape that multiplies it: (K, 1, ...), of the
    stack's dtype and device."""
    return stack.new_tensor(values).view(-1, *[1] * (stack.dim() - 1))


Refusals: TypeAlias = Mapping[str, str]
"""Space -> why a rule is not defined there."""
