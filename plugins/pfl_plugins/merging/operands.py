"""What a rule combines: sets of K matrices of one shape, kept as factors and written out in blocks only.

In most spaces a module gives one such set, its deltas; the space `ab` gives two, the A and the B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.blocks import Place, walk
from pfl_platform.lowrank.deltas import Delta, alike, shared_precision

Entrywise: TypeAlias = Callable[[Tensor, Place], Tensor]
"""A block (K, rows, columns) and its place -> the same entries of the result (rows, columns)."""

Change: TypeAlias = Callable[[Tensor, Place], Tensor]
"""A block (K, rows, columns) and its place -> the block that is merged instead."""

BUDGET = 2**21
"""Bytes of a block of all K matrices. Rules make many small steps on a block: it should stay in the cache."""


@dataclass(frozen=True, eq=False)
class Operand:
    """K matrices of one module. part: "A" or "B" in the space `ab`, else "". index: its number in the whole field.

    A rule that sums takes the mean where `averaged` is set: were both factors summed, their product would grow by K^2.
    `change` is applied to every block before a rule sees it (random masks). `matrices` holds the same matrices written
    out, where that is what came in: the factors of the space `ab`.
    """

    module: str
    part: str
    index: int
    deltas: tuple[Delta, ...]
    averaged: bool = False
    change: Change | None = None
    matrices: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.deltas)

    @property
    def name(self) -> str:
        return f"{self.module}/{self.part}" if self.part else self.module

    @property
    def shape(self) -> tuple[int, int]:
        return self.deltas[0].shape

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    @cached_property
    def precision(self) -> torch.dtype:
        """The dtype of what came in."""
        return shared_precision(alike(self.deltas))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of blocks: float64 for what came in as float64, else float32, which halves the time."""
        return torch.float64 if self.precision == torch.float64 else torch.float32

    @property
    def along(self) -> Literal["rows", "columns"]:
        """The side that is cut into blocks, the longer one. It is the same in every walk, so that an entry has the
        same bits in each: thresholds are compared exactly."""
        return "rows" if self.shape[0] >= self.shape[1] else "columns"

    def only(self, k: int) -> Operand:
        """One of the matrices alone."""
        matrices = None if self.matrices is None else (self.matrices[k],)
        return replace(self, deltas=(self.deltas[k],), matrices=matrices)

    def blocks(self) -> Iterator[tuple[Place, Tensor]]:
        """Blocks (K, rows, columns), all written into the same memory; to be used or changed before the next one."""
        for place, block in self._walk():
            yield place, block if self.change is None else self.change(block, place)

    def _walk(self) -> Iterator[tuple[Place, Tensor]]:
        if self.matrices is None:
            yield from walk(self.deltas, along=self.along, budget=BUDGET, dtype=self.dtype)
            return
        length, across = self.shape if self.along == "rows" else self.shape[::-1]
        step = max(1, BUDGET // (len(self) * across * self.dtype.itemsize))
        for start in range(0, length, step):
            part, whole = slice(start, min(start + step, length)), slice(0, across)
            place = (part, whole) if self.along == "rows" else (whole, part)
            yield place, torch.stack([matrix[place].to(self.dtype) for matrix in self.matrices])

    def dense(self, function: Entrywise, out: Tensor | None = None) -> Tensor:
        """The result of a rule, written out; in the dtype that came in, or into `out`."""
        if out is None:
            out = torch.empty(self.shape, dtype=self.precision, device=self.deltas[0].up.device)
        for place, block in self.blocks():
            out[place] = function(block, place)
        return out

    def stack(self) -> Tensor:
        """All matrices, (K, rows, columns) float64. For factors and for tests."""
        return torch.stack([delta.dense(torch.float64) for delta in self.deltas])


@dataclass(frozen=True, eq=False)
class Field:
    """All operands of a merge, read again whenever they are walked."""

    inputs: Inputs
    read: Callable[[str], tuple[Operand, ...]]

    def __iter__(self) -> Iterator[Operand]:
        for module in self.inputs.modules:
            yield from self.read(module)

    def __len__(self) -> int:
        return len(self.inputs)
