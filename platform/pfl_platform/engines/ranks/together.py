"""How the ranks of a launch agree: rank 0 leads, the others follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from pfl_platform.engines.ranks.hub import Hub
from pfl_platform.engines.ranks.link import Link
from pfl_platform.federation.tasks import Program
from pfl_platform.federation.together import Around


class Leading:
    """Implements `Together` for rank 0. Facts have numbers; every rank counts them alike."""

    leads = True
    rank = 0

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.waiting: Around = nullcontext
        self._count = 0

    def tell(self, value: Any, *, gather: bool = False) -> None:
        """A fact for all; with `gather` only once all ask for it, and so have come as far."""
        self._count += 1
        with self.waiting():
            self.hub.publish(self._count, value, gather=gather)

    def wait(self) -> None:
        """A moment, or until another rank has something to say."""
        with self.waiting():
            self.hub.wait()

    def once(self, make: Callable[[], Any]) -> Any:
        self.hub.check()
        value = make()
        self.tell(value)
        return value

    def led(self, program: Program[Any]) -> Program[Any]:
        try:
            tasks = next(program)
        except StopIteration as stop:
            self.tell({"value": stop.value})
            return stop.value
        self.tell({"tasks": len(tasks)})
        while True:
            outcomes = yield tasks
            try:
                tasks = program.send(outcomes)
            except StopIteration as stop:
                return stop.value

    def agree(self, about: Mapping[str, Any]) -> None:
        self.hub.agree(json.loads(json.dumps(about)))

    def gathered(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        with self.waiting():
            others = self.hub.others_about()
        return [said, *(found for _, found in sorted(others.items()))]


class Following:
    """Implements `Together` for every other rank."""

    leads = False

    def __init__(self, link: Link) -> None:
        self.link = link
        self.waiting: Around = nullcontext
        self._count = 0

    @property
    def rank(self) -> int:
        return self.link.rank

    def told(self) -> Any:
        """The next fact, when it is there."""
        self._count += 1
        with self.waiting():
            return self.link.told(self._count)

    def once(self, make: Callable[[], Any]) -> Any:
        return self.told()

    def led(self, program: Program[Any]) -> Program[Any]:
        found = self.told()
        if "tasks" in found:
            return (yield from program)
        program.close()
        return found["value"]

    def agree(self, about: Mapping[str, Any]) -> None:
        self.link.about(about)

    def gathered(self, said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        self.link.about(said)
        return []
