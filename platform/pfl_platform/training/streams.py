"""How a client's samples arrive and how batches are drawn from its episodic memory.

Memory-only training: arriving samples go to the memory, and every batch is drawn from it. Arrival is addressed by
the total step of the run, not by rounds, so any number of rounds at equal total steps sees the same stream.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.config import Stream
from pfl_platform.data import ClientData, OnDemand, Sample, TaskData
from pfl_platform.rng import numpy_rng
from pfl_platform.training.surfaces import Source

COUNTS = "memory/counts"


def begun(client: ClientData, protocol: str, step: int, total_steps: int) -> tuple[TaskData, ...]:
    """A client's tasks of which something has arrived before a step; at step 0 none has.

    In a dynamic stream task t of n begins with step floor(t * total_steps / n); any other begins with all of them.
    """
    tasks = client.tasks if step > 0 else ()
    if protocol != "dynamic":
        return tasks
    return tuple(task for t, task in enumerate(tasks) if t * total_steps // len(tasks) < step)


@dataclass(frozen=True)
class ClientStream(Source):
    """One client's stream through its memory, from `first_step` of `total_steps` on.

    dynamic: the tasks come one after another, each over an equal share of the steps; static: all tasks' samples,
    shuffled. Within its share, arrival is even: sample j of n comes at step floor(j * share / n).
    """

    client: ClientData
    options: Stream
    seed: int
    batch_size: int
    first_step: int
    total_steps: int

    def describe(self) -> Mapping[str, Any]:
        return {
            "client": self.client.client_id,
            "first": self.first_step,
            "total": self.total_steps,
            "batch": self.batch_size,
            **self.options.model_dump(),
        }

    def arrivals(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(task, index) of every sample in order of arrival, and the step at which each comes, int64, ascending."""
        tasks = self.client.tasks
        address = (self.seed, "arrival", self.client.client_id)
        if self.options.protocol == "static":
            pool = [(t, i) for t, task in enumerate(tasks) for i in range(len(task.train))]
            order = numpy_rng(*address).permutation(len(pool))
            steps = np.arange(len(pool), dtype=np.int64) * self.total_steps // max(1, len(pool))
            return [pool[int(k)] for k in order], steps
        items: list[tuple[int, int]] = []
        parts = []
        for t, task in enumerate(tasks):
            begin = t * self.total_steps // len(tasks)
            share = (t + 1) * self.total_steps // len(tasks) - begin
            n = len(task.train)
            items.extend((t, int(i)) for i in numpy_rng(*address, t).permutation(n))
            parts.append(begin + np.arange(n, dtype=np.int64) * share // max(1, n))
        return items, np.concatenate(parts)

    def open(self, private: Tensors) -> OpenStream:
        return OpenStream(self, private.get(COUNTS))


class OpenStream:
    """Draws batches; holds the use counts of this client's samples."""

    def __init__(self, stream: ClientStream, counts: Tensor | None) -> None:
        self._stream = stream
        self._items, self._steps = stream.arrivals()
        size = len(self._items)
        self._counts = np.zeros(size) if counts is None else counts.numpy().astype(np.float64, copy=True)
        self._memory: list[int] = []
        self._seen = 0

    def _fill(self, step: int) -> None:
        """Takes in all samples that arrived by `step`; over capacity, one held sample at random gives way."""
        arrived = int(np.searchsorted(self._steps, step, side="right"))
        capacity = self._stream.options.capacity
        for index in range(self._seen, arrived):
            if capacity and len(self._memory) >= capacity:
                rng = numpy_rng(self._stream.seed, "evict", self._stream.client.client_id, index)
                self._memory[int(rng.integers(len(self._memory)))] = index
            else:
                self._memory.append(index)
        self._seen = max(self._seen, arrived)

    def batch(self, step: int) -> list[Sample]:
        stream = self._stream
        total = stream.first_step + step
        self._fill(total)
        rng = numpy_rng(stream.seed, "memory", stream.client.client_id, total)
        size = min(stream.batch_size, len(self._memory))
        if stream.options.sampler == "uniform":
            picked = [self._memory[int(k)] for k in rng.choice(len(self._memory), size=size, replace=False)]
        else:
            picked = self._least_used(rng, size)
        tasks = stream.client.tasks
        return [tasks[t].train[i] for t, i in (self._items[k] for k in picked)]

    def _least_used(self, rng: np.random.Generator, size: int) -> list[int]:
        """Draws without replacement with probability proportional to exp(-count / temperature).

        The largest of (log probability + Gumbel noise) are such a draw, and unlike normalised probabilities they cannot
        underflow to too few candidates.
        """
        options = self._stream.options
        held = np.asarray(self._memory)
        keys = -self._counts[held] / options.temperature + rng.gumbel(size=len(held))
        picked = held[np.argsort(-keys, kind="stable")[:size]]
        self._counts *= options.decay
        self._counts[picked] += 1.0
        return [int(k) for k in picked]

    def private(self) -> dict[str, Tensor]:
        if self._stream.options.sampler == "uniform":
            return {}
        return {COUNTS: torch.from_numpy(self._counts.copy())}


class Pooled(OnDemand):
    """Several sequences of samples, one behind the other; a sample is asked for when it is read.

    >>> from pfl_platform.data import Turn
    >>> one, two = (Sample(name, (Turn("Say it.", name),)) for name in ("one", "two"))
    >>> pool = Pooled([[one], [], [two, one]])
    >>> len(pool), pool[1].id, [sample.id for sample in pool[1:]]
    (3, 'two', ['two', 'one'])
    """

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, place: int) -> Sample:
        number = bisect_right(self._ends, place)
        return self._parts[number][place - (self._ends[number - 1] if number else 0)]


@dataclass(frozen=True)
class Epochs(Source):
    """Fixed samples in shuffled passes, for alignment, distillation, pretraining, and clients that count in epochs.
    `name` addresses the order; `first` is the number of batches that were read in earlier turns."""

    samples: Sequence[Sample]
    batch_size: int
    seed: int
    name: str
    shuffle: bool = True
    first: int = 0

    def describe(self) -> Mapping[str, Any]:
        ids = [sample.id for sample in self.samples[:3]]
        size, batch = len(self.samples), self.batch_size
        told = {"name": self.name, "size": size, "batch": batch, "ids": ids, "seed": self.seed}
        return {**told, "first": self.first} if self.first else told

    def steps(self, epochs: int = 1) -> int:
        """Batches in so many passes; a pass's last, smaller batch counts."""
        return epochs * -(-len(self.samples) // self.batch_size)

    def open(self, private: Tensors) -> OpenEpochs:
        return OpenEpochs(self)


class OpenEpochs:
    def __init__(self, source: Epochs) -> None:
        self._source = source
        self._epoch = -1
        self._order = np.arange(0)

    def batch(self, step: int) -> list[Sample]:
        source = self._source
        epoch, position = divmod(source.first + step, source.steps())
        if epoch != self._epoch:
            self._epoch = epoch
            count = len(source.samples)
            rng = numpy_rng(source.seed, "epoch", source.name, epoch)
            self._order = rng.permutation(count) if source.shuffle else np.arange(count)
        chosen = self._order[position * source.batch_size : (position + 1) * source.batch_size]
        return [source.samples[int(k)] for k in chosen]

    def private(self) -> dict[str, Tensor]:
        return {}
