"""FLOPs of training by the profiler, without slowing training down.

The profiler counts one dry row per kind of work (a step, or a statistic), and batches are booked by their tokens.
The dry row is discarded, so counting never touches what is trained. A meter lives as long as a task: what a task is
said to cost must not depend on what its process did before.
"""

from __future__ import annotations

from collections.abc import Callable

from pfl_platform.ledger.flops import count_flops


class FlopMeter:
    """Counts a kind of work once and books it by tokens.

    >>> meter = FlopMeter()
    >>> import torch
    >>> meter.measure(("tiny", "step"), 4, lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    >>> meter.book(("tiny", "step"), 8)   # 2 * 2 * 3 * 5 = 60 FLOPs for 4 tokens, so 120 for 8
    >>> meter.total
    120.0
    """

    def __init__(self) -> None:
        self._per_token: dict[tuple[str, ...], float] = {}
        self.total = 0.0

    def known(self, kind: tuple[str, ...]) -> bool:
        return kind in self._per_token

    def measure(self, kind: tuple[str, ...], tokens: int, run: Callable[[], object]) -> None:
        """Runs `run` under the profiler; its result is dropped."""
        self._per_token[kind] = count_flops(run)[1] / max(1, tokens)

    def book(self, kind: tuple[str, ...], tokens: int) -> None:
        self.total += self._per_token[kind] * tokens
