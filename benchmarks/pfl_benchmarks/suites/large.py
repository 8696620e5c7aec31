"""Fed-LLM-Large's tasks from FedDPA's own files.

Subset `dch` of `FedDPA` is half `h` (1 or 2) of client `c` in FedDPA's data set `d`. Where the halves are cut is not
published: here the first half of the file's records, and the second.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pfl_benchmarks.flan.loading import client_file, read_pools
from pfl_benchmarks.folder.scenario import TaskSlot
from pfl_benchmarks.suites.options import LargeOptions
from pfl_benchmarks.text.drawing import Pool
from pfl_platform.data import Sample

DATASET = "FedDPA"
SETS = {"1": ("dataset1", "flan-feddpa1"), "2": ("dataset2", "flan-feddpa2")}
"""First digit of a subset -> the folder of the set, and its name as a benchmark."""
BESIDE = Path("flan", "feddpa")


class FedDpaFiles:
    """The halves of FedDPA's clients, where they do not lie in the folder form."""

    def __init__(self, root: Path, options: LargeOptions) -> None:
        self._root = root
        places = [options.feddpa] if options.feddpa else [root / BESIDE, root.parent / BESIDE]
        self._files = next((place for place in places if place.is_dir()), places[-1])

    def has(self, slot: TaskSlot, split: str) -> bool:
        if slot.dataset != DATASET or slot.file(self._root, split).is_file() or not _is_half(slot.subset):
            return False
        folder = self._files / SETS[slot.subset[0]][0]
        return client_file(folder, int(slot.subset[1])).is_file() and any(folder.glob("flan_test*.jsonl"))

    def __call__(self, slot: TaskSlot, split: str) -> list[Sample] | None:
        if not self.has(slot, split):
            return None
        number, client, half = tuple(slot.subset)
        pool = self._pools[number][int(client)]
        samples = pool.train if split == "train" else pool.test
        middle = (len(samples) + 1) // 2
        part = samples[:middle] if half == "1" else samples[middle:]
        return [replace(sample, id=f"{slot.name}/{sample.id}", options=()) for sample in part]

    @cached_property
    def _pools(self) -> dict[str, list[Pool]]:
        return {
            number: read_pools(self._files / folder, name)
            for number, (folder, name) in SETS.items()
            if (self._files / folder).is_dir()
        }


def _is_half(subset: str) -> bool:
    return len(subset) == 3 and subset[0] in SETS and subset[1] in "01234567" and subset[2] in "12"
