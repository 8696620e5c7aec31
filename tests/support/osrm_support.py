"""OSRM's small federations in memory, and any federation played round by round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from federation_support import built, copying_client
from pfl_platform.data import ClientData
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.rounds import Progress, drive, one_round, prepare
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Outcome
from pfl_platform.store.memory import MemoryStore

SMALL, LARGE = "tiny-llama-s", "tiny-llama-m"
BACKBONES = {"a": SMALL, "b": SMALL, "c": SMALL, "lone": LARGE}
QUICK = (
    *("rounds=2", "local_steps=2", "adapter.r=2", "training.batch_size=4", "training.lr=0.01", "engine.threads=1"),
    *("backbone_options.init=0", "evaluation.every=1", "evaluation.max_new_tokens=3"),
)


def client(name: str, backbone: str = SMALL) -> ClientData:
    return copying_client(name, backbone, held_out=3)


def set_up(clients: Sequence[ClientData], *sets: str, method: str = "osrm") -> Setup:
    return built(method, clients, [*QUICK, *sets])


def federation(*sets: str, clients: str = "ab", method: str = "osrm") -> Setup:
    names = ["lone"] if clients == "lone" else clients
    return set_up([client(name, BACKBONES[name]) for name in names], *sets, method=method)


class Run:
    """A federation in memory, round by round; what its tasks did is kept."""

    def __init__(self, setup: Setup, store: MemoryStore | None = None) -> None:
        self.setup, self.store = setup, store or MemoryStore()
        self.fed = setup.federation(self.store)
        self.worker = setup.worker(self.store)
        self.engine = InProcessEngine(self.worker)
        self.done: list[tuple[Any, Outcome]] = []
        execute = self.worker.execute

        def watched(task: Any, observe: Any = None) -> Outcome:
            outcome = execute(task, observe)
            self.done.append((task, outcome))
            return outcome

        self.worker.execute = watched  # type: ignore[method-assign]
        self.progress: Progress = drive(prepare(self.fed, setup.parts), self.engine)
        self.outcomes: list[Mapping[str, Outcome]] = []

    def go(self, rounds: int = 1) -> Run:
        for index in range(len(self.outcomes), len(self.outcomes) + rounds):
            result = drive(one_round(self.fed, self.setup.parts, self.progress, index), self.engine)
            self.progress = result.progress
            self.outcomes.append(result.outcomes)
        return self

    def state(self, name: str) -> dict[str, Tensor]:
        return self.store.get(self.progress.states[name])

    def texts(self, name: str, index: int = -1) -> list[str]:
        address = self.outcomes[index][name].predictions
        assert address is not None
        return [json.loads(line)["text"] for line in self.store.get_text(address).splitlines()]


def part(state: Mapping[str, Tensor], letter: str) -> dict[str, Tensor]:
    return {key.split("/")[1]: value for key, value in state.items() if key.endswith(f"/{letter}") and "local" in key}
