"""DARE: drop entries at random, rescale the others, then merge.

Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
ICML 2024, arXiv 2311.03099, section 3.2. For each client k and entry j, with drop rate q:

    b_kj ~ Bernoulli(1 - q),   T'_kj = b_kj T_kj / (1 - q)

so that E[T'] = T and Var[T'_j] = T_j^2 q / (1 - q). Then the mean, task arithmetic or TIES of the T'_k.

Masks have an address (round, client, module): they depend neither on other clients nor on how a matrix is cut into
blocks. They are drawn in tiles along the longer side, so that any block draws no more than the tiles that it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pfl_platform.lowrank.blocks import Place
from pfl_plugins.merging.operands import Change, Field, Operand
from pfl_plugins.merging.outcomes import Outcome
from pfl_plugins.merging.rules import Bound, Rule

TILE = 2**16
"""Entries of a tile, at most (though never less than one row)."""


def drop_and_rescale(values: Tensor, keep: Tensor, rate: float) -> Tensor:
    """`T' = b T / (1 - q)`; `keep` is the mask b.

    >>> drop_and_rescale(torch.tensor([3.0, 5.0]), torch.tensor([True, False]), 0.5)
    tensor([6., 0.])
    """
    return (values / (1.0 - rate)).mul_(keep)


def mask(operand: Operand, rate: float, place: Place, rng: Callable[[int], torch.Generator]) -> Tensor:
    """b at a place of a matrix, bool (rows, columns). rng(tile): the generator of a tile, of which the seed is taken:
    SFC64 makes the 32 bits of an entry many times faster than torch does, and `q 2^32` of the 2^32 values drop it."""
    d_out, d_in = operand.shape
    rowwise = operand.along == "rows"
    across, length = (d_in, d_out) if rowwise else (d_out, d_in)
    step = max(1, TILE // max(1, across))
    side = place[0] if rowwise else place[1]
    least = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    tiles = []
    for tile in range(side.start // step, -(-side.stop // step)):
        lines = min(step, length - tile * step)
        bits = np.random.SFC64(rng(tile).initial_seed()).random_raw((lines * across + 1) // 2).view(np.uint32)
        tiles.append(torch.from_numpy((bits >= least)[: lines * across]).view(lines, across))
    first = side.start - side.start // step * step
    kept = (torch.cat(tiles) if len(tiles) > 1 else tiles[0])[first : first + side.stop - side.start]
    return kept[:, place[1]] if rowwise else kept.T[place[0]]


class Dare(Rule):
    """Drops and rescales what another rule is then given."""

    def __init__(self, inner: Rule, rate: float) -> None:
        self.inner, self.rate = inner, rate

    def refused(self, space: str) -> str | None:
        return self.inner.refused(space)

    def coefficient(self, count: int) -> float:
        return self.inner.coefficient(count)

    def bind(self, field: Field) -> Bound:
        if self.rate == 0:
            return self.inner.bind(field)

        def read(module: str) -> tuple[Operand, ...]:
            return tuple(replace(operand, change=self._change(field, operand)) for operand in field.read(module))

        dropped = replace(field, read=read)
        bound = self.inner.bind(dropped)

        def outcome(operand: Operand, turn: int) -> Outcome:
            return bound(replace(operand, change=self._change(field, operand)), turn)

        return outcome

    def _change(self, field: Field, operand: Operand) -> Change:
        inputs, rate = field.inputs, self.rate

        def change(block: Tensor, place: Place) -> Tensor:
            for entries, name in zip(block, inputs.names, strict=True):
                keep = mask(operand, rate, place, partial(inputs.rng, "drop", name, operand.name))
                entries.copy_(drop_and_rescale(entries, keep.to(entries.device), rate))
            return block

        return change
