"""Samples of benchmarks and public sets whose files are not here: as many as were published, each as its card says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pfl_platform.data import Benchmark, ClientData, FixedBenchmark, OnDemand, Sample, TaskData, Turn
from pfl_platform.federation.rows import BLANK
from pfl_platform.outlines import Row

WORD = " a"
"""One token in about every tokenizer."""
PUBLIC = 1 << 16
"""Samples that a public set has: more than a run asks for."""


@dataclass(frozen=True)
class Typical(OnDemand):
    """So many samples of one length."""

    name: str
    size: int
    row: Row

    def __len__(self) -> int:
        return self.size

    def at(self, place: int) -> Sample:
        pictures = (BLANK,) * max(0, round(self.row.pictures))
        turn = Turn((WORD * self.row.text).strip(), (WORD * max(1, self.row.answers)).strip())
        return Sample(f"{self.name}-{place}", (turn,), pictures=pictures)


def typical(benchmark: Benchmark, row: Row) -> FixedBenchmark:
    """An outline whose samples can be read."""

    def task(task: TaskData, whose: str) -> TaskData:
        def like(part: str, samples: Sequence[Sample]) -> Typical:
            return Typical(f"{whose}-{task.name}-{part}", len(samples), row)

        return replace(
            task,
            train=like("train", task.train),
            validation=like("validation", task.validation),
            test=like("test", task.test),
        )

    def client(data: ClientData) -> ClientData:
        return replace(data, tasks=tuple(task(item, data.client_id) for item in data.tasks))

    return FixedBenchmark(
        benchmark.name,
        tuple(map(client, benchmark.clients)),
        "outline",
        unseen=tuple(task(item, "unseen") for item in benchmark.unseen),
        public_sets={"public": Typical("public", PUBLIC, row)},
    )


def with_public(benchmark: Benchmark, row: Row) -> FixedBenchmark:
    """The same clients beside a public set of which no sample can be read."""
    return FixedBenchmark(
        benchmark.name,
        benchmark.clients,
        benchmark.digest(),
        benchmark.unseen,
        benchmark.defaults,
        {"public": Typical("public", PUBLIC, row)},
    )
