"""Several processes that carry out one run: who works out what, and how the others learn of it.

All of them walk through the same programs. What only one process can know, or what would be a waste to work out twice,
is asked of the one that leads: a fact by `once`, the result of a program by `led`. A run in one process leads itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

from pfl_platform.federation.tasks import Program

Around: TypeAlias = Callable[[], AbstractContextManager[None]]


class Together(Protocol):
    """leads: whether this process writes the run folder and tells of the run; exactly one does. rank: the number of the
    process, 0 where it leads. waiting: entered while it waits for the others; a profile sets it."""

    waiting: Around

    @property
    def leads(self) -> bool: ...

    @property
    def rank(self) -> int: ...

    def once(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the process that leads, as JSON; it is called nowhere else."""
        ...

    def led(self, program: Program[Any]) -> Program[Any]:
        """The result of a program, as JSON. It runs where the run is led; elsewhere only if it yields tasks, as these
        are everybody's."""
        ...

    def agree(self, about: Mapping[str, Any]) -> None:
        """Raises `UserError` in the process that leads when another one has something else here."""
        ...

    def gathered(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What each process says, JSON, by rank; in the process that leads. Nothing elsewhere."""
        ...


class Alone:
    """Implements `Together` for a run in one process."""

    leads = True
    rank = 0

    def __init__(self) -> None:
        self.waiting: Around = nullcontext

    def once(self, make: Callable[[], Any]) -> Any:
        return make()

    def led(self, program: Program[Any]) -> Program[Any]:
        return (yield from program)

    def agree(self, about: Mapping[str, Any]) -> None:
        pass

    def gathered(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [said]
