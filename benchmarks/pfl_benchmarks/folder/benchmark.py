"""The benchmark that a folder becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pfl_benchmarks.folder.content import samples_of
from pfl_benchmarks.folder.options import ReadingOptions
from pfl_benchmarks.folder.pictures import Pictures
from pfl_benchmarks.folder.public import read_public
from pfl_benchmarks.folder.splits import Odd, Overlap
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData


@final
@dataclass(frozen=True)
class FolderBenchmark:
    """A `Benchmark` read from files."""

    fixed: FixedBenchmark
    options: ReadingOptions
    pictures: Pictures
    overlap: tuple[Overlap, ...] = ()
    odd: tuple[Odd, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.fixed.name

    @property
    def clients(self) -> tuple[ClientData, ...]:
        return self.fixed.clients

    @property
    def unseen(self) -> tuple[TaskData, ...]:
        return self.fixed.unseen

    @property
    def defaults(self) -> Mapping[str, Any]:
        return self.fixed.defaults

    def public(self, name: str | None, size: int, seed: int) -> Sequence[Sample]:
        """A public set of the folder by its name, or one read from a path; see `Benchmark.public`."""
        if name is None or name in self.fixed.public_sets or not Path(name).exists():
            return self.fixed.public(name, size, seed)
        samples = samples_of([task for client in self.clients for task in client.tasks])
        sets = read_public(
            Path(name), samples, root=self.options.public_root, check=self.options.check, pictures=self.pictures
        )
        return FixedBenchmark(self.name, (), "", public_sets=sets).public(None, size, seed)

    def digest(self) -> str:
        return self.fixed.digest()

    def overlap_report(self) -> tuple[Overlap, ...]:
        """How many test records of each task stand in training data too; zero wherever the files are clean."""
        return self.overlap

    @property
    def notes(self) -> tuple[str, ...]:
        """What was remarked, and one sentence on each task whose test records stand in training data, or whose answers
        are none of the options shown; see `pfl_platform.data.Noting`."""
        odd = tuple(
            f"Of {line.num_test} test answers of the task '{line.task}', {line.odd} are none of the options that their "
            "questions show."
            for line in self.odd
        )
        known = tuple(
            f"Of {line.num_test} test records of the task '{line.task}', {line.in_any_train} stand in training data "
            f"too, {line.in_own_train} of them in the task's own."
            for line in self.overlap
            if line.in_any_train
        )
        return self.remarks + odd + known
