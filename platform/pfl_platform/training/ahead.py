"""Batches that are read before their turn: while a device works on one, a thread reads the next.

Reading is what needs no device: questions become tokens, pictures are opened and made small. It changes no number, and
at most one batch waits. On a CPU the thread would take the time that a step needs, so there it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch

from pfl_platform.data import Sample
from pfl_platform.training.view import BatchView

Batch: TypeAlias = tuple[Sequence[Sample], list[BatchView]]
"""Samples, and the micro-batches that they are."""


def worth_it(device: torch.device) -> bool:
    """Whether the device works while this process does something else."""
    return device.type not in ("cpu", "meta")


def batches(make: Callable[[int], Batch], amount: int, *, ahead: bool) -> Generator[Batch, None, None]:
    """`make(0)`, `make(1)`, ..., each made once and in this order. ahead: whether a thread reads a batch while its
    predecessor is in use. What goes wrong in reading is raised when the batch's turn comes.

    To be closed when no more are wanted. Nothing is made while the thread reads: data need not bear two readers.
    """
    if not ahead or amount < 2:
        yield from map(make, range(amount))
        return
    with ThreadPoolExecutor(1, "batches-ahead") as reader:
        following = make(0)
        for index in range(amount):
            found = following
            for view in found[1]:
                view.wait()
            if index + 1 < amount:
                following = make(index + 1)
                for view in following[1]:
                    view.read(reader)
            yield found
