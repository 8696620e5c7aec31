"""Combining adapters that sit on one backbone: what aggregators and the `merge` command share.

A merger reads deltas module by module and gives merged deltas back the same way, so that memory is bounded by the
adapters and one module, whatever the backbone's size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.lowrank.deltas import Delta


@dataclass(frozen=True)
class Target:
    """An adapter into which a merged delta is written: its rank, and the scale of `scale * up @ down`."""

    rank: int
    scale: float


@dataclass(frozen=True)
class Inputs:
    """K adapters on one backbone.

    names: of the adapters, different, in a fixed order. modules: sorted names of the adapted maps; every adapter has
    them all. weights: one per adapter, not negative, sum 1. read(k, module): the delta of one module; may be called any
    number of times. rng(*parts): a generator at an address.
    statistic(name, k, module): what was measured on the data of adapter k (for example a Gram matrix), in the same
        scale for all adapters. shared(name, module): equal for modules that have that statistic in common, since they
        read the same input. reference(module): the merged delta from which all adapters started, if there was one.
        All are None when there is nothing.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    weights: tuple[float, ...]
    read: Callable[[int, str], Delta]
    rng: Callable[..., torch.Generator]
    statistic: Callable[[str, int, str], Tensor] | None = None
    reference: Callable[[str], Delta] | None = None
    shared: Callable[[str, str], Hashable] | None = None

    def __post_init__(self) -> None:
        if not self.names or not self.modules:
            raise UserError("There is nothing to merge; at least one adapter with one adapted module must be there.")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UserError(f"Two adapters have the name '{twice[0]}'; give them different ones.")
        fits = len(self.weights) == len(self.names) and all(math.isfinite(w) and w >= 0 for w in self.weights)
        if not fits or abs(sum(self.weights) - 1.0) > 1e-6:
            raise UserError(
                f"{len(self.names)} adapters need as many weights, not negative and of sum 1; they are {self.weights}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def deltas(self, module: str) -> tuple[Delta, ...]:
        return tuple(self.read(k, module) for k in range(len(self)))

    def without(self, names: Sequence[str]) -> Inputs:
        """These adapters left out, the weights of the others scaled to sum 1 again."""
        kept = [k for k, name in enumerate(self.names) if name not in names]
        total = sum(self.weights[k] for k in kept)
        if not total > 0:
            raise UserError(f"Nothing is left to merge without {', '.join(repr(name) for name in names)}.")
        statistic = self.statistic
        return replace(
            self,
            names=tuple(self.names[k] for k in kept),
            weights=tuple(self.weights[k] / total for k in kept),
            read=lambda k, module: self.read(kept[k], module),
            statistic=None if statistic is None else lambda name, k, module: statistic(name, kept[k], module),
        )


class Numbers(Mapping[str, float]):
    """Numbers for people that are computed when somebody looks at them.

    >>> dict(Numbers(lambda: {"rank": 2.0}))
    {'rank': 2.0}
    """

    def __init__(self, compute: Callable[[], Mapping[str, float]]) -> None:
        self._compute = compute

    @cached_property
    def _found(self) -> Mapping[str, float]:
        return self._compute()

    def __getitem__(self, key: str) -> float:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True)
class Merged:
    """One module's result: for each target a delta in its rank and scale. A target of None asks for the whole result:
    a delta of whatever rank, or the dense matrix (d_out, d_in) where the method does not keep to factors. `report`
    holds numbers for people (rank, truncation error, norm against the inputs' mean norm); `Numbers` where they cost
    something. shares: where every target
    has a result of its own, how much of it came from each adapter, over all modules; rows of sum 1."""

    module: str
    deltas: tuple[Delta | Tensor, ...]
    report: Mapping[str, float] = field(default_factory=dict)
    shares: tuple[tuple[float, ...], ...] = ()


class Merger(ABC):
    """A rule for combining adapters, in the space in which it was asked to work."""

    @property
    def space(self) -> str:
        """The name of that space, for reports."""
        return ""

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that must be there."""
        return ()

    @property
    def personal(self) -> bool:
        """Whether every adapter gets a result of its own (targets are then one per adapter, in their order)."""
        return False

    @abstractmethod
    def check(self, inputs: Inputs) -> None:
        """Raises `UserError` when these adapters cannot be combined this way. Reads factors, computes nothing."""

    @abstractmethod
    def merge(self, inputs: Inputs, targets: Sequence[Target | None]) -> Iterator[Merged]:
        """Yields one result per module, in the order of `inputs.modules`."""
