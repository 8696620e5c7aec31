"""A bounded cache that forgets what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Keeps entries whose sizes sum to at most `capacity` (in whatever unit `put` is told).

    >>> cache = LRU[str, int](2)
    >>> for name in "abc":
    ...     cache.put(name, 1)
    >>> cache.get("a") is None, cache.get("c"), len(cache)
    (True, 1, 2)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Adds an entry; one that is larger than the whole cache is not kept."""
        if key in self._entries:
            self._used -= self._entries.pop(key)[1]
        if size > self.capacity:
            return
        self._entries[key] = (value, size)
        self._used += size
        while self._used > self.capacity:
            _, (_, old) = self._entries.popitem(last=False)
            self._used -= old
