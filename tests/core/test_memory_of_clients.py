"""What a process holds between rounds does not depend on how many clients it serves."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from pfl_benchmarks.drake_synth import lazy
from pfl_platform.data import Picture, Sample
from pfl_platform.federation import session
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.run_folder import RunFolder

SETS = (
    "rounds=2",
    "local_steps=2",
    "training.batch_size=2",
    "adapter.r=4",
    "benchmark.backbones=tiny-llava-llama-s",
    "benchmark.train_size=8",
    "benchmark.validation_size=4",
    "benchmark.test_size=4",
    "evaluation.others=true",
    "evaluation.every=1",
    "evaluation.max_new_tokens=1",
    "engine.threads=1",
    "backbone_options.init=0",
)


def alive() -> dict[str, int]:
    """Samples, pictures, tensors and the bytes of their storages that can be reached."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some lazy modules warn when they are looked at
        things = gc.get_objects()
        # A compiler that ran in this process keeps fakes: shapes that hold no bytes and refuse to be asked where.
        tensors = [thing for thing in things if isinstance(thing, torch.Tensor) and not isinstance(thing, FakeTensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {
        "samples": sum(type(thing) is Sample for thing in things),
        "pictures": sum(type(thing).__name__ == "DrawnPicture" and isinstance(thing, Picture) for thing in things),
        "tensors": len(tensors),
        "bytes": sum(storages.values()),
    }


def after_each_round(clients: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    found = []
    commit = RunFolder.commit_round

    def count(folder: RunFolder, index: int, record: Mapping[str, Any]) -> None:
        commit(folder, index, record)
        found.append(alive())

    manager = PluginManager()
    config = Resolver(manager).resolve(Request(method="fedmosaic", sets=[*SETS, f"benchmark.num_clients={clients}"]))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit_round", count)
        session.run(config, out, quiet=True, plugins=manager)
    return found


def test_more_clients_hold_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the clients, each with 4 tasks of 16 samples: the same samples, pictures, tensors and bytes are held."""
    monkeypatch.setattr(lazy, "KEPT", 24)
    monkeypatch.setattr(lazy, "_kept", type(lazy._kept)())
    before = alive()  # what other tests of this process still hold
    few = after_each_round(2, tmp_path / "few", monkeypatch)
    many = after_each_round(4, tmp_path / "many", monkeypatch)
    for small, large in zip(few, many, strict=True):
        assert (small["tensors"], small["bytes"]) == (large["tensors"], large["bytes"])
        samples, pictures = (max(small[kind], large[kind]) - before[kind] for kind in ("samples", "pictures"))
        assert samples <= 24 + 1  # the blank one of a check may be left
        assert pictures <= 4 * 24  # of several hundred
    assert len(many) == 2
    assert many[0]["tensors"] == many[1]["tensors"]  # nor does a round leave anything
