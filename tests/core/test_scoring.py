"""Saved adapters on a run's tasks: a client's own gives its own scores, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.export import save_personal
from pfl_platform.adapters.folders import open_adapter
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.backbones import Backbone
from pfl_platform.cli.scoring import grid
from pfl_platform.data import Benchmark, Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.scoring import score
from pfl_platform.report.units import score_text
from pfl_platform.rng import torch_rng
from pfl_platform.testing import Bench
from pfl_plugins.lora.adapter import Lora
from pfl_plugins.lora.config import Config as LoraOptions
from pfl_plugins.pqlora.adapter import PQLora
from pfl_plugins.pqlora.config import Config as PQOptions


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


def made() -> Backbone:
    found: Backbone | None = pfl_make_backbone("tiny-llama-s", {})
    assert found is not None
    return found


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


def test_an_adapter_with_offsets_is_laid_exactly(tmp_path: Path) -> None:
    pq = PQLora(PQOptions(r=8, blocks=2, scale=1.5))
    host = Host(made(), pq, (Slot("local"),))
    host.load({**pq.frozen(host.backbone, 0), **pq.initial(host.backbone, "local", 0)})
    keys = [key for key in host.params if key.endswith(("/P", "/Q", "local/A", "local/B"))]
    host.load({key: 0.3 * torch.randn(host.params[key].shape, generator=torch_rng(1, key)) for key in keys})
    inputs = host.backbone.codec.encode([Sample("1", (Turn("Say one.", "one"),))]).inputs
    with torch.no_grad(), host.mixing({"local": 1.0}):
        expected = host.run(inputs, use_cache=False).logits
    assert save_personal(host, {"local": 1.0}, tmp_path / "saved")
    adapter = open_adapter(tmp_path / "saved", offsets=True)
    bare = Host(made(), Lora(LoraOptions(r=2)), (Slot("local"),))
    sites = {layer.site.path: name for name, layer in bare.layers.items()}
    laid = {f"base/{sites[module]}/W": adapter.delta(module).dense() for module in adapter.modules}
    offsets = {f"base/{sites[module]}/c": adapter.offset(module) for module in adapter.modules}
    assert sum(bool(value.any()) for value in offsets.values() if value is not None) == 2 * 7, "of two blocks"
    for address, tensors, alike in (("with", {**laid, **offsets}, True), ("without", laid, False)):
        bare.load_base(address, lambda _, found=tensors: found)  # type: ignore[misc]
        with torch.no_grad(), bare.mixing({}):
            found = bare.run(inputs, use_cache=False).logits
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3) is alike
    with pytest.raises(UserError, match="lora_bias: the adapter holds an offset beside the factors"):
        open_adapter(tmp_path / "saved")


def test_adapters_with_offsets_score_what_the_run_says(kit: Bench, benchmark: Benchmark, tmp_path: Path) -> None:
    out = tmp_path / "pq"
    more = {"adapter.name": "pqlora", "adapter.r": "8", "adapter.blocks": "2", "training.lr": "0.02"}
    session.run(kit.config(**more, local_steps="8"), out, quiet=True, plugins=kit.manager, benchmark=benchmark)
    results = json.loads((out / "results.json").read_bytes())["clients"]
    found = scored(kit, out, benchmark, out / "adapters")["adapters"]["adapters"]["clients"]
    own = {name: row["self"] for name, row in found.items()}
    assert own == {name: entry["self"]["last"] for name, entry in results.items()}
    one = sorted((out / "adapters").iterdir())[0]
    tensors = load_file(one / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith(".lora_B.bias"))
    save_file({**tensors, key: torch.zeros(1)}, one / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lora_B\.bias' of shape \(1,\), which fits no factors"):
        scored(kit, out, benchmark, one)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, one / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"whole tensors beside its factors, such as 'base_model\.model\.lm_head"):
        scored(kit, out, benchmark, one)


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
