"""Small federations in memory: clients whose questions are answered by copying, with any method's own recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pfl_platform.data import ClientData, FixedBenchmark, TaskData
from pfl_platform.federation.setup import Setup, build
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import samples
from pfl_platform.testing.rounds import Rounds

Federate = Callable[..., Rounds]


def copying_client(name: str, backbone: str, *, held_out: int = 2) -> ClientData:
    """A client of one task. held_out: samples for validation, and as many for the test."""
    parts = (samples(name, 8), samples(f"{name}v", held_out), samples(f"{name}t", held_out))
    return ClientData(name, backbone, (TaskData(f"copy-{name}", "open-ended", "exact", *parts),))


def built(method: str, clients: Sequence[ClientData], sets: Sequence[str], *, public: int = 0) -> Setup:
    """These clients under a method. public: samples that the server may read."""
    manager = PluginManager()
    given = {"public": samples("public", public)} if public else {}
    config = Resolver(manager).resolve(Request(method=method, sets=list(sets)))
    return build(config, manager, FixedBenchmark("test", tuple(clients), "1", public_sets=given))


def federating(folder: Path, method: str, *settings: str) -> Federate:
    """What a test calls for rounds of its method, or of another to compare with: `federate("sft", clients=1)`."""
    settings = ("backbone_options.init=0", *settings)

    def made(method: str = method, clients: int = 2, **changes: Any) -> Rounds:
        return Rounds(Bench(method, folder, ("tiny-llama-s", "tiny-llama-m"), settings), clients=clients, **changes)

    return made
