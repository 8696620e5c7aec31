"""Spaces: what a rule is given of a module, and how its results become a merged delta.

ab      A_G = M({A_k}), B_G = M({B_k})                          equal rank and scale only
delta   D_G = M({D_k}),  D_k = s_k B_k A_k                      then truncation
knots   D_G = U S M({V_k^T}) or U M({S V_k^T})                  then truncation; see `pfl_plugins.knots.space`
weight  as delta, without truncation, dense
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.deltas import Delta, alike, shared_precision
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Leading, Outcome, Product


class Space(ABC):
    """Turns adapters into operands, and outcomes into a merged delta."""

    def check(self, inputs: Inputs) -> None:
        """Raises `UserError` for adapters that do not fit together, naming the two."""
        for module in inputs.modules:
            alike(inputs.deltas(module))

    @property
    def dense(self) -> bool:
        """Whether results are dense matrices only."""
        return False

    @property
    def parts(self) -> int:
        """How many operands a module has."""
        return 1

    @abstractmethod
    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]: ...

    @abstractmethod
    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        """The merged delta, from one outcome per operand."""

    def field(self, inputs: Inputs) -> Field:
        """All operands of a merge."""
        places = {module: self.parts * number for number, module in enumerate(inputs.modules)}
        return Field(inputs, lambda module: self.operands(inputs, module, places[module]))


@dataclass(frozen=True)
class DeltaSpace(Space):
    """The deltas themselves, each client's scale folded in."""

    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]:
        return (Operand(module, "", index, inputs.deltas(module)),)

    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        return outcomes[0]


@dataclass(frozen=True)
class WeightSpace(DeltaSpace):
    """The deltas as what they add to the dense weights. This is the exception to working on factors: results are
    dense, one module at a time, and never become adapters again."""

    @property
    def dense(self) -> bool:
        return True

    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        return Written(outcomes[0], shared_precision(inputs.deltas(module)))


@dataclass(frozen=True, eq=False)
class Written(Outcome):
    """An outcome that is handed out dense."""

    inner: Outcome
    precision: torch.dtype

    def whole(self) -> Tensor:
        whole = self.inner.whole()
        return whole if isinstance(whole, Tensor) else whole.dense(self.precision)

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        return self.inner.leading(ranks, tol)


@dataclass(frozen=True)
class FactorSpace(Space):
    """A and B separately. The scale stays outside; the coefficient, and what a rule's sum adds to its mean, go into B
    alone. With `previous` the factors that the clients started from are taken off first and added again."""

    previous: bool = False

    @property
    def parts(self) -> int:
        return 2

    def check(self, inputs: Inputs) -> None:
        super().check(inputs)
        for module in inputs.modules:
            first, *others = inputs.deltas(module)
            for k, other in enumerate(others, start=1):
                for what, ours, theirs in (("rank", first.rank, other.rank), ("scale", first.scale, other.scale)):
                    if ours != theirs:
                        raise UserError(
                            f"Merging A and B separately needs one {what}, but at '{module}' that of "
                            f"'{inputs.names[0]}' is {ours:g} and that of '{inputs.names[k]}' {theirs:g}; "
                            "the space 'delta' or 'knots' takes different ones."
                        )

    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]:
        deltas = inputs.deltas(module)
        start = self._start(inputs, module)
        names = [delta.name for delta in deltas]
        downs = tuple(_moved(delta.down, start.down if start else None) for delta in deltas)
        ups = tuple(_moved(delta.up, start.up if start else None) for delta in deltas)
        return (
            Operand(module, "A", index, _as_deltas(downs, names), averaged=True, matrices=downs),
            Operand(module, "B", index + 1, _as_deltas(ups, names), matrices=ups),
        )

    def _start(self, inputs: Inputs, module: str) -> Delta | None:
        return inputs.reference(module) if self.previous and inputs.reference is not None else None

    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        deltas = inputs.deltas(module)
        down, up = (_written(outcome) for outcome in outcomes)
        start = self._start(inputs, module)
        if start is not None:
            down, up = down + start.down.double(), up + start.up.double()
        return Product(Delta(up, down, deltas[0].scale, precision=shared_precision(deltas)))


def _moved(factor: Tensor, start: Tensor | None) -> Tensor:
    return factor.detach() if start is None else factor.detach() - start.to(factor)


def _as_deltas(matrices: Sequence[Tensor], names: Sequence[str]) -> tuple[Delta, ...]:
    return tuple(Delta.from_dense(matrix, name) for matrix, name in zip(matrices, names, strict=True))


def _written(outcome: Outcome) -> Tensor:
    whole = outcome.whole()
    return whole.double() if isinstance(whole, Tensor) else whole.dense(torch.float64)
