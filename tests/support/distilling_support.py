"""A federation of three clients on two tokenizers whose server distils, for the tests of the methods that do so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federation_support import built, copying_client
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.components import Federation, Update, Updates
from pfl_platform.federation.groups import mean, sizes
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.memory import MemoryStore

LLAMA, QWEN = "tiny-llava-llama-s", "tiny-llava-qwen-s"
NO_PUBLIC_SET = r"has no public set; name a folder or another benchmark that has one with --public"
QUICK = ("rounds=2", "local_steps=2", "adapter.r=2", "training.batch_size=2", "backbone_options.init=0")
Place = tuple[Federation, Any]


def set_up(method: str, *sets: str, public: bool = True) -> Setup:
    """Clients a and b on one backbone, c on one of another tokenizer, and the public samples that the server needs."""
    clients = [copying_client(name, backbone) for name, backbone in (("a", LLAMA), ("b", LLAMA), ("c", QWEN))]
    return built(method, clients, [*QUICK, *sets], public=8 if public else 0)


def place_of(chosen: Setup) -> Place:
    """A federation and its worker, on one store."""
    store = MemoryStore()
    return chosen.federation(store), chosen.worker(store)


class Recorder(InProcessEngine):
    """Keeps what ran."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[Task] = []

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        self.seen += tasks
        return super().run(tasks)


def updates(fed: Federation, clients: str = "abc", *, noise: float = 0.1, more: int = 0) -> Updates:
    """What clients send after a training that this noise stands for, so that B is not 0.

    more: examples that each has beyond the one before."""
    items = []
    for number, client in enumerate(clients):
        backbone = fed.backbone_of[client]
        tensors = fed.adapter.initial(fed.load(backbone), "global", 0)
        generator = torch.Generator().manual_seed(ord(client))
        sent = {key: value + noise * torch.randn(value.shape, generator=generator) for key, value in tensors.items()}
        items.append(Update(client, backbone, 8 + more * number, fed.store.put(sent), fed.store))
    return Updates(tuple(items))


def group_average(sent: Updates, backbone: str, *, examples: bool = False) -> dict[str, Tensor]:
    """The mean over the clients of one backbone. examples: weighted by how many each has."""
    group = [update for update in sent if update.backbone == backbone]
    return mean(group, sizes(group, examples=examples), Keys("*"))
