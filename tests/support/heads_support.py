"""A federation of encoders with classifiers, for tests of task heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.config import RunConfig
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData, Turn
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.run_folder import RunFolder

ENCODER, DECODER = "tiny-roberta", "tiny-llama-s"
WORDS = ["apple", "bread", "coat", "dress", "egg", "fish", "glass", "hat", "iron", "jar"]
OPTIONS = {"a": ("no", "yes"), "b": ("cold", "warm", "hot"), "c": ("left", "right")}
SIZES = {"a": 6, "b": 9, "c": 6}
HEAD_BYTES = 4 * (96 * 96 + 96 + 4 * 96 + 4)


def samples(client_id: str, part: str, count: int) -> list[Sample]:
    options = OPTIONS[client_id]
    return [
        Sample(
            f"{client_id}-{part}-{index}",
            (Turn(f"What of the {WORDS[index % len(WORDS)]} in {part} {index}?", options[index % len(options)]),),
            options=options,
        )
        for index in range(count)
    ]


def benchmark(backbones: Mapping[str, str] | None = None) -> FixedBenchmark:
    """Three clients with label words of their own: two, three and two."""
    clients = []
    for name, size in SIZES.items():
        task = TaskData(
            f"task-{name}",
            "multi-choice",
            "choice",
            train=samples(name, "train", size),
            validation=samples(name, "validation", 2),
            test=samples(name, "test", 4),
        )
        clients.append(ClientData(name, (backbones or {}).get(name, ENCODER), (task,)))
    return FixedBenchmark("heads", tuple(clients), "heads-1")


def config(method: str = "fedit", **changes: Any) -> RunConfig:
    settings = {
        "benchmark": "drake-synth",
        "rounds": 2,
        "local_steps": 2,
        "training.batch_size": 3,
        "training.lr": 0.05,
        "adapter.r": 4,
        "evaluation.every": 2,
        "evaluation.max_new_tokens": 3,
        "engine.threads": 1,
        "backbone_options.init": 0,
        **changes,
    }
    sets = [f"{key}={value}" for key, value in settings.items()]
    return Resolver(PluginManager()).resolve(Request(method=method, sets=sets))


def states(folder: RunFolder) -> dict[str, dict[str, Tensor]]:
    last = folder.last_round()
    assert last is not None
    return {client: folder.store.get(address) for client, address in last["states"].items()}


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def encoder() -> Backbone:
    made = pfl_make_backbone(ENCODER, {"init": 0})
    assert made is not None
    return made
