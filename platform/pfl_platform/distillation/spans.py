"""Matching positions of two tokenizers by the characters they cover.

Two backbones render a sample to the same text but cut it differently, so their hidden states can be compared only over
pieces of text that both cut out. Such a piece is a *segment*: as short as can be, with a token boundary of both
tokenizers at either end. Features are compared as means over a segment (`MatchPlan`), predictions position by position
(`same_places`). Pure functions; nothing here knows of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.errors import UserError

Span = tuple[int, int]
Segment = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions of the first and of the second tokenizer that stand for the same piece of text."""


def common_segments(spans_a: Sequence[Span], spans_b: Sequence[Span]) -> list[Segment]:
    """The minimal common segments of one row, in the order of the text.

    spans: per position the half-open range of characters it covers. A position that covers nothing, such as padding
    with (-1, -1), belongs to no segment; neither does text that only one tokenizer covers.

    Several positions may have overlapping or equal spans: bytes of one character, or the many positions of a picture
    that stand for one mark. Where both tokenizers cut a segment into the same spans, the k-th position of one is
    matched with the k-th of the other (pictures with equally many positions, equal tokenizers); elsewhere all positions
    of a segment form one group.

    >>> common_segments([(0, 2), (2, 5)], [(0, 2), (2, 3), (3, 5)])   # ab|cde and ab|c|de
    [((0,), (0,)), ((1,), (1, 2))]
    >>> common_segments([(0, 7), (0, 7)], [(0, 7), (0, 7)])           # a picture of two positions in both
    [((0,), (0,)), ((1,), (1,))]
    """
    tokens = sorted(
        (start, end, side, position)
        for side, spans in enumerate((spans_a, spans_b))
        for position, (start, end) in enumerate(spans)
        if 0 <= start < end
    )
    segments: list[Segment] = []
    members: tuple[list[int], list[int]] = ([], [])
    reach = -1
    for start, end, side, position in tokens:
        if start >= reach:  # nothing so far goes past this character: a boundary of both
            _close(members, spans_a, spans_b, segments)
            members = ([], [])
        members[side].append(position)
        reach = max(reach, end)
    _close(members, spans_a, spans_b, segments)
    return segments


def _close(
    members: tuple[list[int], list[int]], spans_a: Sequence[Span], spans_b: Sequence[Span], segments: list[Segment]
) -> None:
    ours, theirs = sorted(members[0]), sorted(members[1])
    if not ours or not theirs:
        return
    if [spans_a[i] for i in ours] == [spans_b[i] for i in theirs]:
        segments.extend(((i,), (j,)) for i, j in zip(ours, theirs, strict=True))
    else:
        segments.append((tuple(ours), tuple(theirs)))


def only(spans: Sequence[Span], keep: Sequence[bool]) -> list[Span]:
    """The spans of one row with those that are not kept replaced by (-1, -1), for example to match answers only.

    >>> only([(0, 2), (2, 4)], [False, True])
    [(-1, -1), (2, 4)]
    """
    return [span if wanted else (-1, -1) for span, wanted in zip(spans, keep, strict=True)]


def same_places(target: Sequence[Span], source: Sequence[Span]) -> list[int]:
    """For each position of `target`, in one row, the position of `source` that predicts the same text; -1 for none.

    Two tokens are predicted from the same text when they begin a common segment. The source's must reach at least as
    far: what it says of longer text says what comes first (see `vocabularies`), but of a shorter token it cannot say
    how the text goes on.

    >>> same_places([(0, 2), (2, 5)], [(0, 2), (2, 3), (3, 5)])   # ab|cde learns from ab|c|de: `c` is too short
    [0, -1]
    >>> same_places([(0, 2), (2, 3), (3, 5)], [(0, 2), (2, 5)])   # the other way, `de` has no counterpart
    [0, 1, -1]
    """
    places = [-1] * len(target)
    for ours, theirs in common_segments(target, source):
        if source[theirs[0]][1] >= target[ours[0]][1]:
            places[ours[0]] = theirs[0]
    return places


@dataclass(frozen=True)
class Pooling:
    """Which positions of a batch are averaged into which group.

    positions: int64 (M,), indices into the batch flattened to (rows * positions). groups: int64 (M,), non-decreasing.
    sizes: int64 (G,), positions per group.
    """

    positions: Tensor
    groups: Tensor
    sizes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(rows, positions, d) or (positions, d) -> the mean of each group, (G, d), float32 at least."""
        flat = features.flatten(0, -2)
        chosen = flat.index_select(0, self.positions.to(flat.device))
        chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
        if len(self.positions) == len(self.sizes):  # one position each: nothing to average
            return chosen
        sums = chosen.new_zeros(len(self.sizes), chosen.shape[-1])
        sums = sums.index_add(0, self.groups.to(flat.device), chosen)
        return sums / self.sizes.to(sums).unsqueeze(-1)


def _pooling(groups: Sequence[Sequence[int]]) -> Pooling:
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.int64)
    positions = torch.tensor([position for group in groups for position in group], dtype=torch.int64)
    return Pooling(positions, torch.repeat_interleave(torch.arange(len(sizes)), sizes), sizes)


def pool(features: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The mean of the features (T, d) in each group of positions, (G, d).

    >>> pool(torch.tensor([[1.0], [3.0], [8.0]]), [(0, 1), (2,)])
    tensor([[2.],
            [8.]])
    """
    return _pooling(groups)(features)


@dataclass(frozen=True)
class MatchPlan:
    """How the features of one batch in two backbones become rows that can be compared.

    `plan.a(features_a)` and `plan.b(features_b)` have equal length G, and row g of both stands for the same piece of
    text. Built once per batch and used for every module. `rows` (G,) tells the sample of each group.
    """

    a: Pooling
    b: Pooling
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def of(spans_a: Sequence[Sequence[Span]], spans_b: Sequence[Sequence[Span]]) -> MatchPlan:
        """From the spans of all rows; the rows of one backbone have equal length (padding counts).

        Raises `UserError` when the backbones do not have the same number of rows.
        """
        if len(spans_a) != len(spans_b):
            raise UserError(f"Cannot match a batch of {len(spans_a)} rows with one of {len(spans_b)} rows.")
        groups_a: list[list[int]] = []
        groups_b: list[list[int]] = []
        rows: list[int] = []
        for row, (ours, theirs) in enumerate(zip(spans_a, spans_b, strict=True)):
            for positions_a, positions_b in common_segments(ours, theirs):
                groups_a.append([row * len(ours) + position for position in positions_a])
                groups_b.append([row * len(theirs) + position for position in positions_b])
                rows.append(row)
        return MatchPlan(_pooling(groups_a), _pooling(groups_b), torch.tensor(rows, dtype=torch.int64))
