"""Random draws at an address, without a global generator and without torch.

The address rule is the platform's own (typed parts, SHA-256). It is repeated here because listing benchmarks must not
import torch. Every draw goes through `random.Random.random`, the one method whose sequence Python guarantees to stay.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
Address = str | int


def digest_of(*address: Address) -> bytes:
    """SHA-256 of an address; equal addresses give equal digests on every machine."""
    return hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in address).encode()).digest()


class Dice:
    """Draws at one address.

    >>> Dice(0, "client", 3).below(1000) == Dice(0, "client", 3).below(1000)
    True
    """

    def __init__(self, *address: Address) -> None:
        self._random = random.Random(int.from_bytes(digest_of(*address)[:8], "big")).random

    def below(self, bound: int) -> int:
        """An integer of 0 .. bound - 1."""
        return int(self._random() * bound)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[self.below(len(items))]

    def take(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        return self.take(items, len(items))

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One item, with probability in proportion to its weight (not negative, sum above 0)."""
        left = self._random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]


def stratified(index: int, bins: int, *address: Address) -> int:
    """The bin of position `index`: every run of `bins` positions meets each bin once, in an order of its own.

    >>> sorted(stratified(i, 4, "demo") for i in range(8, 12))
    [0, 1, 2, 3]
    """
    block, place = divmod(index, bins)
    return Dice(*address, "block", block).shuffled(range(bins))[place]
