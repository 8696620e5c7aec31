"""Samples that are drawn when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from pfl_platform.data import Sample


class LazySamples(Sequence[Sample]):
    """`size` samples; each is drawn on first use and then kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[int, Sample] = {}

    @abstractmethod
    def draw(self, index: int) -> Sample:
        """Sample `index`, 0 .. size - 1: the same at every call."""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._size))]
        place = index + self._size if index < 0 else index
        if not 0 <= place < self._size:
            raise IndexError(f"there is no sample {index} among {self._size}")
        if place not in self._kept:
            self._kept[place] = self.draw(place)
        return self._kept[place]
