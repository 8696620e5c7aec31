"""What happens when memory runs out in a pass: its micro-batch is halved, and twice as many are accumulated.

The parts of a micro-batch share its normalisation, so that gradients are those of the whole but for rounding; where
dropout is on, its masks are others. Whatever was halved stays halved for the rest of the run.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pfl_platform.errors import RunStopped

if TYPE_CHECKING:
    from pfl_platform.training.view import BatchView

METRIC = "parts_of_a_micro_batch"
"""Name under which a task's metrics say how often micro-batches were split, where they were."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocator has found no memory: a GPU's, torch's on the CPU, or Python's own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) and "memory" in str(error)


def _said(sentence: str) -> None:
    print(sentence, file=sys.stderr)


class NoRoom(RunStopped):
    """A single row does not fit, with whatever else is in its pass."""


@dataclass
class Relief:
    """Into how many parts every micro-batch is split; shared by all that a process trains. tell: hears of it."""

    parts: int = 1
    tell: Callable[[str], None] = field(default=_said)

    def split(self, views: Sequence[BatchView]) -> list[BatchView]:
        """The micro-batches as they are taken now."""
        found = [part for view in views for part in view.parts(self.parts)]
        for view in found:
            view.taken_in = self.parts
        return found

    def halve(self, who: str, views: Sequence[BatchView], *, alone: bool) -> None:
        """Takes note that these did not fit. alone: whether nobody else goes through them in step.

        Raises `RunStopped` where they cannot be smaller.
        """
        if views[0].taken_in < self.parts:
            return  # another, who trains side by side with it, has been told already
        largest = max(len(view.samples) for view in views)
        if largest == 1:
            raise NoRoom(f"Out of memory: {who} does not fit with a single row in a pass; {HELP}")
        if not alone:
            raise RunStopped(
                f"Out of memory: {who} does not fit with {largest} rows in a pass; set training.micro_batch to less, "
                "as processes that share a batch cannot split it further by themselves."
            )
        if any(view.notes for view in views):
            raise RunStopped(
                f"Out of memory: {who} does not fit with {largest} rows in a pass; set training.micro_batch to less, "
                "as its steps leave each other notes."
            )
        self.parts *= 2
        self.tell(
            f"Out of memory: {who} does not fit with {largest} rows in a pass. From here on every micro-batch goes in "
            f"{self.parts} parts, whose gradients are added up; last digits change."
        )


HELP = (
    "a smaller rank (adapter.r), shorter rows (backbone_options.max_length), engine.dtype=bfloat16 or a smaller "
    "backbone takes less."
)


def parts_of(records: Iterable[Mapping[str, Any]]) -> int:
    """Into how many parts micro-batches were split at most, by the records of rounds."""
    clients = [client for record in records for client in record["clients"].values()]
    return max((int(client.get("metrics", {}).get(METRIC, 1)) for client in clients), default=1)


def notes_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a reader of results must know of it."""
    parts = parts_of(records)
    if parts == 1:
        return []
    return [f"Memory ran out: micro-batches went in up to {parts} parts, which changes the last digits."]


def released() -> None:
    """Gives back what a failed pass has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
