"""A bench's federation in memory, one round after another: for tests that look at states and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.config import ClientOptions
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.rounds import drive, one_round, prepare
from pfl_platform.federation.setup import build
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing.bench import Bench


class Rounds:
    """Runs rounds of a bench's method and remembers the last task and outcome of each client.

    Nothing is evaluated unless `changes` say so (`evaluation.every`). `own`: client id -> options of its adapter.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        clients: int = 3,
        own: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> None:
        config = bench.config(**{"rounds": 50, "evaluation.every": 50, **changes})
        differing = {client_id: ClientOptions(adapter=dict(options)) for client_id, options in (own or {}).items()}
        config = config.model_copy(update={"clients": differing})
        self.setup = build(config, bench.manager, bench.benchmark(clients))
        self.parts = self.setup.parts
        self.store = MemoryStore()
        self.fed = self.setup.federation(self.store)
        self.worker = self.setup.worker(self.store)
        self.tasks: dict[str, Task] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.done = 0
        self._engine = InProcessEngine(self.worker)
        self.progress = drive(prepare(self.fed, self.parts), self)

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        """As an engine does, with a record."""
        outcomes = self._engine.run(tasks)
        for task in tasks:
            self.tasks[task.actor], self.outcomes[task.actor] = task, outcomes[task.actor]
        return outcomes

    def go(self, count: int = 1) -> Rounds:
        """`count` more rounds."""
        for _ in range(count):
            self.tasks, self.outcomes = {}, {}
            self.progress = drive(one_round(self.fed, self.parts, self.progress, self.done), self).progress
            self.done += 1
        return self

    def state(self, client_id: str, *patterns: str) -> dict[str, Tensor]:
        """A client's state now, or the keys that match."""
        return self.store.get(self.progress.states[client_id], Keys(*patterns) if patterns else None)

    def sent(self, client_id: str) -> dict[str, Tensor]:
        """What the client sent in the last round."""
        address = self.outcomes[client_id].sent
        return self.store.get(address) if address else {}

    def received(self, client_id: str) -> dict[str, Tensor]:
        """What the client was sent at the beginning of the last round."""
        address = self.tasks[client_id].inbox
        return self.store.get(address) if address else {}

    def reply(self, client_id: str) -> dict[str, Tensor]:
        """What the server would send to a client now."""
        return self.parts.aggregator.reply(self.fed, self.progress.server, client_id)
