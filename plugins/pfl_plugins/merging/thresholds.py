"""The exact threshold of a trim over more entries than anybody wants to hold.

Kept are the `keep` entries of largest magnitude of each client, over all matrices of a group (the whole model, for a
flat trim). A sample of entries brackets the threshold; one walk over the blocks counts what lies above the bracket and
collects what lies inside; a selection among these few is the threshold, exactly. When a sample has misled, walks that
count the magnitudes by their leading bits narrow the range instead. Among entries of equal magnitude those at the first
positions are kept (by operand, then by row, then by column), so that the number is exact and the choice the same on
every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from pfl_platform.lowrank.blocks import Place
from pfl_plugins.merging.operands import Operand

_SAMPLE = 2**18
"""Least number of sampled entries, where there are that many."""
_BINS = 2**12
_COLLECT = 2**21
"""Entries that are collected without another look, per client."""


@dataclass(frozen=True)
class Cut:
    """Who survives: magnitudes above `value`, and of those equal to it all up to one position. `last` is None when all
    of them do; else (index of the operand, row, column)."""

    value: float
    last: tuple[int, int, int] | None = None

    def trim(self, entries: Tensor, operand: int, place: Place) -> Tensor:
        """The entries (rows, columns) of one client at a place of an operand, 0 where they do not survive."""
        if self.value <= 0.0:
            return entries.clone()
        if self.last is None or operand < self.last[0]:
            return hardshrink(entries, _below(self.value, entries.dtype))
        if operand > self.last[0]:
            return hardshrink(entries, self.value)
        rows = torch.arange(place[0].start, place[0].stop, device=entries.device)[:, None]
        columns = torch.arange(place[1].start, place[1].stop, device=entries.device)
        _, row, column = self.last
        early = (rows < row) | ((rows == row) & (columns <= column))
        size = entries.abs()
        return torch.where((size > self.value) | ((size == self.value) & early), entries, 0.0)


def _below(value: float, dtype: torch.dtype) -> float:
    """The next smaller number: what is above it is at least `value`."""
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.zeros((), dtype=dtype)))


def survivors(density: float, numel: int) -> int:
    """How many entries a trim keeps: `int(density * numel)`, at least 1; all for a density of 1.

    >>> survivors(0.2, 10), survivors(0.01, 10), survivors(1.0, 10)
    (2, 1, 10)
    """
    return numel if density >= 1 else max(1, int(density * numel))


@dataclass
class _Search:
    """One client's search. The threshold lies in [low, high] (magnitudes), with `above` entries beyond high."""

    keep: int
    dtype: torch.dtype
    low: float = 0.0
    high: float = math.inf
    above: int = 0
    guess: tuple[float, float] | None = None
    found: float | None = None
    equal: int = 0  # entries of exactly that magnitude
    wanted: int = 0  # of these, how many survive
    beyond: int = 0
    inside: list[Tensor] = field(default_factory=list)
    count: int = 0
    bins: Tensor | None = None

    def __post_init__(self) -> None:
        self.bits = torch.int64 if self.dtype == torch.float64 else torch.int32

    def _as_bits(self, value: float) -> int:
        return int(torch.tensor(value, dtype=self.dtype).view(self.bits))

    def _as_value(self, bits: int) -> float:
        return float(torch.tensor(bits, dtype=self.bits).view(self.dtype))

    @property
    def _range(self) -> tuple[int, int, int]:
        """Bits of low and of high, and by how much they are shifted for the bins. Bits of magnitudes are in order."""
        low, high = self._as_bits(self.low), self._as_bits(self.high)
        return low, high, max(0, (high - low).bit_length() - _BINS.bit_length() + 1)

    def see(self, size: np.ndarray) -> None:
        """Takes in a block of magnitudes. numpy compares and selects several times faster than torch on a CPU."""
        if self.guess is not None:
            low, high = self.guess
            self.beyond += int(np.count_nonzero(size > high))
            if self.count <= _COLLECT * 4:
                piece = size[(size >= low) & (size <= high)]
                self.count += piece.size
                self.inside.append(torch.from_numpy(piece))
            return
        low_bits, high_bits, shift = self._range
        bits = size.view(np.int64 if self.dtype == torch.float64 else np.int32).ravel().astype(np.int64)
        bits = bits[(bits >= low_bits) & (bits <= high_bits)]
        counts = torch.from_numpy(np.bincount((bits - low_bits) >> shift, minlength=_BINS))
        self.bins = counts if self.bins is None else self.bins + counts

    def settle(self) -> None:
        """After a walk: the threshold, or a narrower range for the next one."""
        if self.guess is not None:
            self._from_guess(*self.guess)
        else:
            self._from_bins()

    def _from_guess(self, low: float, high: float) -> None:
        inside = torch.cat(self.inside) if self.inside else torch.empty(0)
        whole = self.count == inside.numel() and self.count <= _COLLECT * 4
        if whole and self.beyond < self.keep <= self.beyond + self.count:
            rank = self.keep - self.beyond
            self.found = float(np.partition(inside.numpy(), self.count - rank)[self.count - rank])
            self.equal = int((inside == self.found).sum())
            self.wanted = rank - int((inside > self.found).sum())
        elif self.keep <= self.beyond:
            self.low = high
        elif whole and self.beyond + self.count < self.keep:
            self.high, self.above = low, self.beyond + int((inside > low).sum())
        self.guess, self.beyond, self.inside, self.count = None, 0, [], 0

    def _from_bins(self) -> None:
        assert self.bins is not None
        low, high, shift = self._range
        # `above` has been counted beyond high; within the range the bins are counted from the top.
        reached = self.above + self.bins.flip(0).cumsum(0)
        number = int((reached < self.keep).sum())
        bin_index = len(self.bins) - 1 - number
        within = int(self.bins[bin_index])
        self.above = int(reached[number]) - within
        first, last = low + (bin_index << shift), min(high, low + ((bin_index + 1) << shift) - 1)
        self.low, self.high, self.bins = self._as_value(first), self._as_value(last), None
        if first == last:
            self.found, self.equal, self.wanted = self.low, within, self.keep - self.above
        elif within <= _COLLECT:
            self.guess = (self.low, self.high)


def cuts(group: Callable[[], Iterable[Operand]], density: float, rng: Callable[[int], torch.Generator]) -> list[Cut]:
    """One cut per client, for a trim of each client's entries over all operands of the group.

    group: walks the operands, in order, whenever called. rng(k): a generator for the sample of client k; it decides how
    much work there is, never the result.
    """
    known = [(operand.numel, len(operand), operand.dtype) for operand in group()]
    total, clients = sum(numel for numel, _, _ in known), known[0][1]
    dtype = torch.float64 if any(dtype == torch.float64 for _, _, dtype in known) else torch.float32
    if not total:  # coordinates of updates that are all zero
        return [Cut(0.0)] * clients
    keep = survivors(density, total)
    searches = [_Search(keep, dtype) for _ in range(clients)]
    if total <= _COLLECT:
        for search in searches:
            search.guess = (0.0, math.inf)
    else:
        _guess(group, searches, total, rng)
    while any(search.found is None for search in searches):
        for operand in group():
            for _, block in operand.blocks():
                sizes = block.abs_().to(dtype).cpu().numpy()
                for entries, search in zip(sizes, searches, strict=True):
                    if search.found is None:
                        search.see(entries)
        for search in searches:
            if search.found is None:
                search.settle()
    return _with_ties(group, searches)


def _guess(
    group: Callable[[], Iterable[Operand]],
    searches: Sequence[_Search],
    total: int,
    rng: Callable[[int], torch.Generator],
) -> None:
    """Brackets each threshold from a sample: four and a half standard deviations to either side of its quantile."""
    wanted = max(_SAMPLE, total >> 12)
    generators = [rng(k) for k in range(len(searches))]
    drawn: list[list[Tensor]] = [[] for _ in searches]
    for operand in group():
        if operand.change is not None:
            return  # what is merged are not the products of the factors
        count = -(-wanted * operand.numel // total)
        for k, delta in enumerate(operand.deltas):
            rows = torch.randint(operand.shape[0], (count,), generator=generators[k])
            columns = torch.randint(operand.shape[1], (count,), generator=generators[k])
            for part in range(0, count, 2**14):
                some = slice(part, part + 2**14)
                products = delta.up[rows[some]].double() * delta.down.T[columns[some]].double()
                drawn[k].append((delta.scale * products.sum(dim=1)).abs())
    for search, values in zip(searches, drawn, strict=True):
        sample = torch.cat(values).sort(descending=True).values
        count, share = len(sample), search.keep / total
        margin = 4.5 * math.sqrt(count * share * (1 - share)) + 2
        first, last = int(share * count - margin), int(share * count + margin) + 1
        # A hair wider, since blocks are computed in another precision than the sample.
        high = float(sample[first]) * (1 + 1e-5) if first >= 0 else math.inf
        low = float(sample[last]) * (1 - 1e-5) if last < count else 0.0
        search.guess = (low, high)


def _with_ties(group: Callable[[], Iterable[Operand]], searches: Sequence[_Search]) -> list[Cut]:
    """Finds the last survivor among equal magnitudes, where not all of them survive."""
    values = [search.found or 0.0 for search in searches]
    open_ = [k for k, search in enumerate(searches) if values[k] > 0 and search.wanted < search.equal]
    last: dict[int, tuple[int, int, int]] = {}
    if open_:
        left = {k: searches[k].wanted for k in open_}
        for operand in group():
            waiting = [k for k in open_ if k not in last]
            per_row = {k: torch.zeros(operand.shape[0], dtype=torch.int64) for k in waiting}
            for place, block in operand.blocks():
                for k in waiting:
                    per_row[k][place[0]] += (block[k].abs() == values[k]).sum(dim=1).cpu()
            for k in waiting:
                here = int(per_row[k].sum())
                if here < left[k]:
                    left[k] -= here
                    continue
                reached = per_row[k].cumsum(0)
                row = int((reached < left[k]).sum())
                before = int(reached[row] - per_row[k][row])
                last[k] = (operand.index, row, _column(operand, k, row, values[k], left[k] - before))
    return [Cut(value, last.get(k)) for k, value in enumerate(values)]


def _column(operand: Operand, k: int, row: int, value: float, number: int) -> int:
    """The column of the `number`-th entry of this magnitude in a row."""
    columns: list[int] = []
    for (rows, across), block in operand.blocks():
        if rows.start <= row < rows.stop:
            hits = (block[k][row - rows.start].abs() == value).nonzero().flatten()
            columns += [across.start + int(hit) for hit in hits]
    return columns[number - 1]
