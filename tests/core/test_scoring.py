"""Saved adapters on a run's tasks: a client's own gives its own scores, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pfl_platform.cli.scoring import grid
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.scoring import score
from pfl_platform.report.units import score_text
from pfl_platform.testing import Bench


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("sft", tmp_path_factory.mktemp("scoring"), ("tiny-llama-s", "tiny-llama-m"), rounds=2)


@pytest.fixture(scope="module")
def benchmark(kit: Bench) -> Benchmark:
    return kit.benchmark(2)


@pytest.fixture(scope="module")
def run(kit: Bench, benchmark: Benchmark) -> Path:
    out = kit.folder / "run"
    config = kit.config(**{"training.lr": "0.02", "local_steps": "8"})
    session.run(config, out, quiet=True, plugins=kit.manager, benchmark=benchmark)
    return out


def scored(kit: Bench, run: Path, benchmark: Benchmark, *adapters: Path, **more: Any) -> dict[str, Any]:
    return score(run, adapters, plugins=kit.manager, benchmark=benchmark, **more)


def zeroed(source: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def test_own_adapters_score_what_the_run_says(kit: Bench, run: Path, benchmark: Benchmark) -> None:
    found = scored(kit, run, benchmark, run / "adapters")
    results = json.loads((run / "results.json").read_bytes())["clients"]
    for name, row in found["adapters"]["adapters"]["clients"].items():
        assert row["self"] == results[name]["self"]["last"] == found["run"][name]
    assert len(found["run"]) == 2
    values = list(found["run"].values())
    assert found["adapters"]["adapters"]["mean"] == pytest.approx(sum(values) / 2)
    assert found["adapters"]["adapters"]["minimum"] == min(values)


def test_an_adapter_of_zeros_is_the_bare_backbone(kit: Bench, run: Path, benchmark: Benchmark, tmp_path: Path) -> None:
    first = sorted((run / "adapters").iterdir())[0]
    found = scored(kit, run, benchmark, zeroed(first, tmp_path / "zero"), run / "adapters")
    results = json.loads((run / "results.json").read_bytes())["clients"]
    zero = {name: row["self"] for name, row in found["adapters"]["zero"]["clients"].items()}
    assert zero == {name: entry["self"]["baseline"] for name, entry in results.items()}
    own = {name: row["self"] for name, row in found["adapters"]["adapters"]["clients"].items()}
    assert zero != own, "training changed no score, so the test shows nothing"
    clients, *sides = grid(found).columns
    assert [side.head[1] for side in sides] == ["own", "zero", "adapters"]
    assert clients.cells == (*results, "mean", "minimum")
    assert sides[1].cells[-2] == score_text(fmean(value for value in zero.values() if value is not None))


def test_validation_samples_are_scored_when_asked_for(kit: Bench, run: Path, benchmark: Benchmark) -> None:
    found = scored(kit, run, benchmark, run / "adapters", split="validation")
    assert found["split"] == "validation"
    assert set(found["run"].values()) == {None}, "the run has scored its test samples"


def test_what_does_not_fit_is_refused(kit: Bench, run: Path, benchmark: Benchmark, tmp_path: Path) -> None:
    first = sorted((run / "adapters").iterdir())[0]
    odd = zeroed(first, tmp_path / "odd")
    tensors = load_file(odd / "adapter_model.safetensors")
    renamed = {key.replace("model.layers.0.", "model.layers.77."): value for key, value in tensors.items()}
    save_file(renamed, odd / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"odd adapts 'model\.layers\.77\..*no adapter of this run"):
        scored(kit, run, benchmark, odd)
    wide = zeroed(first, tmp_path / "wide")
    longer = {
        key: torch.zeros(value.shape[0], value.shape[1] + 1) if "lora_A" in key else value
        for key, value in load_file(wide / "adapter_model.safetensors").items()
    }
    save_file(longer, wide / "adapter_model.safetensors")
    with pytest.raises(UserError, match="wide has 'model"):
        scored(kit, run, benchmark, wide)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nor has it a folder with one for the client"):
        scored(kit, run, benchmark, tmp_path / "empty")
    with pytest.raises(UserError, match="is given twice"):
        scored(kit, run, benchmark, first, first)
