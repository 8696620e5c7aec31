"""What a rule has made of a module, and how it becomes an adapter of a wanted rank and scale.

Factored      a delta in factors                         truncated by its SVD
Entries       a function of the entries of dense deltas  truncated in row blocks
Dense         a dense matrix                             truncated by its leading directions
Isotropic     one value on all singular directions       directions are chosen before it is put on them
Product       merged A and B                             already an adapter
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_platform.federation.merging import Target
from pfl_platform.lowrank.blocks import Elementwise, Place, elementwise
from pfl_platform.lowrank.decompose import SVD, Split, leading, svd, truncate
from pfl_platform.lowrank.decompose import Leading as Part
from pfl_platform.lowrank.decompose import values as singular_values
from pfl_platform.lowrank.deltas import Delta
from pfl_plugins.merging.krylov import leading_svd, squared_norm
from pfl_plugins.merging.operands import BUDGET, Entrywise, Operand

_HOLD = 32 * 2**20
"""Bytes of a dense result that is held while it is truncated; a larger one is made in two walks, block by block."""


class Measures(NamedTuple):
    """Of a result. error: of the truncation, relative. norm, top: Frobenius norm and largest singular value (nan where
    nobody has computed it) of the whole result. rank: its numerical rank, where that is known."""

    error: float
    norm: float
    top: float
    rank: int | None


@dataclass(frozen=True, eq=False)
class Fit:
    """A result for one target; it is measured when somebody asks."""

    delta: Delta | Tensor
    measure: Callable[[], Measures]

    @cached_property
    def measures(self) -> Measures:
        return self.measure()


class Leading(NamedTuple):
    """The leading singular directions of a result, the energy (squared norm) outside them, and the numerical rank of
    all of it, where that is known or can be found."""

    svd: SVD
    rest: float
    rank: int | Callable[[], int] | None

    @property
    def energy(self) -> float:
        return float(self.svd.s.square().sum()) + self.rest


@dataclass(frozen=True)
class Refit:
    """How deltas become adapters: factor `coef`, split of the singular values, seed of added directions, tolerance."""

    coef: float
    split: Split
    seed: int
    tol: float | None = None


class Outcome(ABC):
    """A merged delta that is not truncated yet."""

    @abstractmethod
    def whole(self) -> Delta | Tensor:
        """All of it, in factors where it has any."""

    @abstractmethod
    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        """For each rank, at least that many leading directions (or all there are)."""

    def fit(self, targets: Sequence[Target | None], how: Refit) -> list[Fit]:
        """One result per target; equal targets share theirs."""
        ranks = sorted({target.rank for target in targets if target is not None})
        found = self.leading(ranks, how.tol) if ranks else {}
        made: dict[Target | None, Fit] = {}
        for target in targets:
            if target not in made:
                made[target] = self._whole(how) if target is None else fitted(found[target.rank], target, how)
        return [made[target] for target in targets]

    def _whole(self, how: Refit) -> Fit:
        whole = self.whole()
        if isinstance(whole, Tensor):
            scaled = whole * how.coef
            return Fit(scaled, lambda: Measures(0.0, float(scaled.double().norm()), math.nan, None))
        return measured(replace(whole, scale=whole.scale * how.coef).cast(), how.tol)


def fitted(found: Leading, target: Target, how: Refit) -> Fit:
    """The truncation to one target."""
    whole = replace(found.svd, s=found.svd.s * how.coef)
    delta = truncate(whole, target.rank, split=how.split, scale=target.scale, seed=how.seed).delta

    def measure() -> Measures:
        norm = how.coef * math.sqrt(found.energy)
        lost = math.sqrt(found.rest + float(found.svd.s[target.rank :].square().sum())) * how.coef
        top = float(whole.s[0]) if whole.rank else 0.0
        rank = found.rank() if callable(found.rank) else found.rank
        return Measures(lost / norm if norm > 0 else 0.0, norm, top, rank)

    return Fit(delta, measure)


def measured(delta: Delta, tol: float | None) -> Fit:
    """A delta as it is."""

    def measure() -> Measures:
        whole = svd(delta, tol)
        return Measures(0.0, float(whole.s.norm()), float(whole.s[0]) if whole.rank else 0.0, whole.rank)

    return Fit(delta, measure)


@dataclass(frozen=True, eq=False)
class Factored(Outcome):
    """A delta in factors, of any rank."""

    delta: Delta

    def whole(self) -> Delta:
        return self.delta

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        return led(leading(self.delta, max(ranks), tol), ranks, self.whole, tol)


def led(found: Part, ranks: Sequence[int], whole: Callable[[], Delta], tol: float | None) -> dict[int, Leading]:
    """The same directions for all ranks; the rank of the whole is found when somebody asks, if it is not known."""
    rank = (lambda: len(singular_values(whole(), tol))) if found.values is None else len(found.values)
    return dict.fromkeys(ranks, Leading(found.svd, found.rest, rank))


@dataclass(frozen=True, eq=False)
class Entries(Outcome):
    """A function of the entries of the operand's dense matrices. memory: float64, at least as many as the result has,
    that may be used while it is truncated; new memory of that size costs as much as writing it."""

    operand: Operand
    function: Entrywise
    memory: Tensor | None = None

    def whole(self) -> Tensor:
        return self.operand.dense(self.function)

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        operand, function = self.operand, self.function
        if operand.numel * operand.dtype.itemsize <= _HOLD:
            near = operand.deltas[0].down if len(operand.deltas) == 1 else None
            memory = self.memory
            if memory is None:
                memory = torch.empty(operand.numel, dtype=torch.float64, device=operand.deltas[0].up.device)
            written = operand.dense(function, memory[: operand.numel].view(operand.shape))
            return Dense(written, operand.precision, near).leading(ranks, tol)

        def changed(block: Tensor, place: Place) -> Tensor:
            return function(block if operand.change is None else operand.change(block, place), place)

        return _in_blocks(operand.deltas, changed, ranks, tol, operand.dtype)


@dataclass(frozen=True, eq=False)
class Dense(Outcome):
    """A dense matrix (d_out, d_in). precision: what it was made of. near: see `leading_svd`."""

    matrix: Tensor
    precision: torch.dtype
    near: Tensor | None = None

    def whole(self) -> Tensor:
        return self.matrix.to(self.precision)

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        matrix = self.matrix.double()  # once: it is read a dozen times
        quick = leading_svd(matrix, max(ranks), self.precision, self.near)
        if quick is not None:
            rest = squared_norm(matrix) - float(quick.s.square().sum())
            return dict.fromkeys(ranks, Leading(quick, max(rest, 0.0), None))
        # Two walks over what is there: the deltas give no more than a shape and a precision.
        shape = Delta(matrix.new_zeros(len(matrix), 1), matrix.new_zeros(1, matrix.shape[1]), precision=self.precision)
        return _in_blocks((shape,), lambda _, place: matrix[place], ranks, tol, torch.float64)


def _in_blocks(
    deltas: Sequence[Delta], function: Elementwise, ranks: Sequence[int], tol: float | None, dtype: torch.dtype
) -> dict[int, Leading]:
    """By the Gram matrix of the result, block by block."""
    made = elementwise(deltas, function, max(ranks), budget=BUDGET, dtype=dtype)
    found = svd(made.delta, tol)
    kept = float(found.s.square().sum())
    rest = kept * made.error**2 / (1.0 - made.error**2) if made.error < 1.0 else 0.0
    return dict.fromkeys(ranks, Leading(found, rest, None))


@dataclass(frozen=True, eq=False)
class Isotropic(Outcome):
    """One value on all singular directions of a matrix; see `pfl_plugins.isoc`.

    A flat spectrum cannot be truncated: any choice among equal singular values is as good as another and depends on
    rounding. So the leading directions are those of the matrix, `total`, before it was made flat. The value is the mean
    of all singular values; over `smaller` of them, where it is given, or (`of_kept`) over those that are kept.
    """

    total: Delta
    smaller: int | None = None
    of_kept: bool = False
    tol: float | None = None

    @cached_property
    def matrix(self) -> SVD:
        """All directions."""
        return svd(self.total, self.tol)

    def value(self, values: Tensor) -> float:
        """What takes the place of all these singular values; 0 for a matrix of zeros."""
        size = len(values) if self.smaller is None else self.smaller
        return float(values.sum() / size) if size else 0.0

    def whole(self) -> Delta:
        matrix = self.matrix
        return matrix.delta(torch.full_like(matrix.s, self.value(matrix.s)))

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        part = leading(self.total, max(ranks), self.tol)
        # All values are needed. Where squares do not hold the small ones, they are looked for.
        values = singular_values(self.total, self.tol) if part.values is None else part.values
        found = {}
        for rank in ranks:
            kept = part.svd.s[:rank]
            value = float(kept.mean()) if self.of_kept and len(kept) else self.value(values)
            flat = replace(part.svd, u=part.svd.u[:, :rank], s=torch.full_like(kept, value), vt=part.svd.vt[:rank])
            found[rank] = Leading(flat, value**2 * (len(values) - len(kept)), len(values))
        return found


@dataclass(frozen=True, eq=False)
class Product(Factored):
    """Merged factors: an adapter as it is."""

    def fit(self, targets: Sequence[Target | None], how: Refit) -> list[Fit]:
        """The factors themselves for targets of their rank; the coefficient goes into B alone."""
        found = []
        for target in targets:
            if target is None or target.rank != self.delta.rank:
                found += super().fit([target], how)
                continue
            up = self.delta.up.double() * (how.coef * self.delta.scale / target.scale)
            delta = replace(self.delta, up=up, scale=target.scale).cast()
            found.append(measured(delta, how.tol))
        return found
