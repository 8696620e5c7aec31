"""Samples that are drawn when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict

from pfl_platform.data import OnDemand, Sample

KEPT = 512
"""How many drawn samples a process keeps, of all tasks of all clients together. Drawing one takes a tenth of a
millisecond, and a sample takes some kilobytes: to keep all would cost more memory than the clients' adapters."""

_kept: OrderedDict[tuple[LazySamples, int], Sample] = OrderedDict()


class LazySamples(OnDemand):
    """`size` samples; each is drawn when it is asked for, and kept for a while."""

    def __init__(self, size: int) -> None:
        self._size = size

    @abstractmethod
    def draw(self, index: int) -> Sample:
        """Sample `index`, 0 .. size - 1: the same at every call."""

    def __len__(self) -> int:
        return self._size

    def at(self, place: int) -> Sample:
        key = (self, place)
        sample = _kept.pop(key, None)
        if sample is None:
            sample = self.draw(place)
        _kept[key] = sample
        if len(_kept) > KEPT:
            _kept.popitem(last=False)
        return sample
