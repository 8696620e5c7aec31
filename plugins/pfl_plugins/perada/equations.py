"""How a distillation is divided for `keep: best`."""

from __future__ import annotations

import itertools


def parts(steps: int, count: int, *, start: bool) -> list[tuple[int, int]]:
    """`count` parts of nearly equal length (fewer when there are fewer steps), as (first step, step behind the last);
    with `start`, before them the part (0, 0), at which the untrained student is measured.

    >>> parts(10, 4, start=True)
    [(0, 0), (0, 2), (2, 5), (5, 7), (7, 10)]
    >>> parts(3, 1, start=False)
    [(0, 3)]
    """
    count = min(count, steps)
    edges = [k * steps // count for k in range(count + 1)]
    return [(0, 0)] * start + list(itertools.pairwise(edges))
