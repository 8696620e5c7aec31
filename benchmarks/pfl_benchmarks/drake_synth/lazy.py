"""Samples that are drawn when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import overload

from pfl_platform.data import Sample

KEPT = 512
"""How many drawn samples a process keeps, of all tasks of all clients together. Drawing one takes a tenth of a
millisecond, and a sample takes some kilobytes: to keep all would cost more memory than the clients' adapters."""

_kept: OrderedDict[tuple[LazySamples, int], Sample] = OrderedDict()


class LazySamples(Sequence[Sample]):
    """`size` samples; each is drawn when it is asked for. A slice is lazy, too."""

    def __init__(self, size: int) -> None:
        self._size = size

    @abstractmethod
    def draw(self, index: int) -> Sample:
        """Sample `index`, 0 .. size - 1: the same at every call."""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return _Part(self, range(*index.indices(self._size)))
        place = index + self._size if index < 0 else index
        if not 0 <= place < self._size:
            raise IndexError(f"there is no sample {index} among {self._size}")
        key = (self, place)
        sample = _kept.pop(key, None)
        if sample is None:
            sample = self.draw(place)
        _kept[key] = sample
        if len(_kept) > KEPT:
            _kept.popitem(last=False)
        return sample


class _Part(Sequence[Sample]):
    """Some of the samples, drawn when they are asked for."""

    def __init__(self, whole: LazySamples, places: range) -> None:
        self._whole = whole
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return _Part(self._whole, self._places[index])
        return self._whole[self._places[index]]
