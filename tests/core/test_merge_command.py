"""`pfl-platform merge` on folders that plain peft has saved; what comes out is loaded by plain peft again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pfl_platform.cli import main

SHAPES = {"first": (6, 10), "second": (8, 6)}


class Model(nn.Module):
    """Two linear maps by name; deep enough for peft."""

    def __init__(self) -> None:
        super().__init__()
        for name, (d_out, d_in) in SHAPES.items():
            self.add_module(name, nn.Linear(d_in, d_out, bias=False))


def saved(folder: Path, seed: int, rank: int = 2, alpha: int = 4, **options: Any) -> dict[str, Tensor]:
    """An adapter that peft has made and saved; returns the delta of every map as peft computes it."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(SHAPES), **options)
    model = get_peft_model(Model(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return deltas_of(model)


def deltas_of(model: Any) -> dict[str, Tensor]:
    maps = model.base_model.model
    return {name: getattr(maps, name).get_delta_weight("default").detach() for name in SHAPES}


def loaded(folder: Path) -> dict[str, Tensor]:
    return deltas_of(PeftModel.from_pretrained(Model(), str(folder)))


def call(*words: str | Path) -> int:
    return main(["merge", *map(str, words)])


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Tensor]]]:
    return (
        tmp_path / "a",
        tmp_path / "b",
        [saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)],
    )


def test_the_exact_mean_at_full_rank(tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]]) -> None:
    a, b, (first, second) = two
    assert call(a, b, "--method", "flexlora", "--rank", "4", "--out", tmp_path / "out", "--weights", "3,1", "-q") == 0
    found = loaded(tmp_path / "out")
    for name in SHAPES:
        assert torch.allclose(found[name], 0.75 * first[name] + 0.25 * second[name], atol=1e-5)


def test_truncation_is_the_best_approximation(
    tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, (first, second) = two
    assert call(a, b, "-m", "flexlora", "-o", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    found = loaded(tmp_path / "out")
    for row in report["modules"]:
        whole = 0.5 * (first[row["module"]] + second[row["module"]]).double()
        values = torch.linalg.svdvals(whole)
        assert float((found[row["module"]] - whole).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
        kept = float(values[:2].square().sum() / values.square().sum())
        assert row["energy"] == pytest.approx(kept, rel=1e-4)
    assert report["sar_between"][0][0] == pytest.approx(1.0)
    assert (tmp_path / "out" / "sar.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text()) == report


def test_ranks_and_alphas_may_differ_in_delta_space_and_not_between_factors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = saved(tmp_path / "a", 0, rank=1, alpha=3)
    second = saved(tmp_path / "b", 1, rank=3, alpha=2, use_rslora=True)
    assert call(tmp_path / "a", tmp_path / "b", "-m", "flexlora", "--rank", "4", "-o", tmp_path / "out", "-q") == 0
    found = loaded(tmp_path / "out")
    for name in SHAPES:
        assert torch.allclose(found[name], 0.5 * (first[name] + second[name]), atol=1e-5)
    assert call(tmp_path / "a", tmp_path / "b", "-m", "task-arithmetic", "--space", "ab", "-o", tmp_path / "c") == 2
    assert not (tmp_path / "c").exists()
    assert "rank" in capsys.readouterr().err


def test_a_personal_rule_writes_one_adapter_for_each(
    tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]]
) -> None:
    a, b, _ = two
    assert call(a, b, "-m", "emr", "-o", tmp_path / "out", "-q") == 0
    results = [loaded(tmp_path / "out" / name) for name in ("a", "b")]
    assert not torch.allclose(results[0]["first"], results[1]["first"])


def test_dense_deltas_go_into_the_backbone(tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]]) -> None:
    a, b, (first, second) = two
    backbone = Model()
    (tmp_path / "backbone").mkdir()
    save_file(
        {f"{name}.weight": getattr(backbone, name).weight.detach() for name in SHAPES},
        str(tmp_path / "backbone" / "model.safetensors"),
    )
    words = ("-m", "task-arithmetic", "--coef", "0.3", "--full", tmp_path / "backbone", "-o", tmp_path / "out", "-q")
    assert call(a, b, *words) == 0
    merged = load_file(str(tmp_path / "out" / "model.safetensors"))
    for name in SHAPES:
        expected = getattr(backbone, name).weight.detach() + 0.3 * (first[name] + second[name])
        assert torch.allclose(merged[f"{name}.weight"], expected, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]]) -> None:
    a, b, _ = two
    for name in ("one", "two"):
        assert call(a, b, "-m", "dare", "--set", "drop_rate=0.5", "--seed", "7", "-o", tmp_path / name, "-q") == 0
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == other


def broken(folder: Path, how: str) -> None:
    """Spoils a saved adapter in place."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    fields = json.loads(config.read_text())
    tensors = load_file(str(weights))
    if how == "nan":
        next(iter(tensors.values()))[0, 0] = float("nan")
    elif how == "infinity":
        next(iter(tensors.values()))[0, 0] = float("-inf")
    elif how == "integers":
        tensors = {key: value.to(torch.int8) for key, value in tensors.items()}
    elif how == "half":
        tensors.pop(next(key for key in tensors if "lora_B" in key))
    elif how == "zero":
        tensors = {key: torch.zeros_like(value) for key, value in tensors.items()}
    elif how == "groups":
        fields["use_qalora"] = True
    elif how == "module":
        tensors = {key: value for key, value in tensors.items() if "second" not in key}
    elif how == "shape":
        tensors = {
            key: value[:, :4].contiguous() if key.endswith("second.lora_A.weight") else value
            for key, value in tensors.items()
        }
    elif how == "dora":
        fields["use_dora"] = True
    elif how == "kind":
        fields["peft_type"] = "IA3"
    elif how == "backbone":
        fields["base_model_name_or_path"] = "another"
    if how == "pickle":
        weights.rename(folder / "adapter_model.bin")
        return
    save_file(tensors, str(weights))
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-20])
    config.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", ["b", "NaN"]),
        ("infinity", ["b", "infinity"]),
        ("integers", ["I8", "floating-point"]),
        ("half", ["without", "incomplete"]),
        ("groups", ["use_qalora", "quantised"]),
        ("module", ["'second'", "does not"]),
        ("shape", ["'second'", "8 x 6", "8 x 4"]),
        ("dora", ["use_dora", "DoRA"]),
        ("kind", ["IA3", "LORA"]),
        ("backbone", ["another", "one backbone"]),
        ("pickle", ["pickle", "safetensors"]),
        ("truncated", ["safetensors"]),
    ],
)
def test_bad_adapters_are_refused_in_one_sentence(
    how: str, words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        saved(tmp_path / name, seed)
        if how == "backbone":
            config = tmp_path / name / "adapter_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "this"}))
    broken(tmp_path / "b", how)
    assert call(tmp_path / "a", tmp_path / "b", "-m", "flexlora", "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("method", ["flexlora", "ties", "iso-c", "knots-ties", "dare", "emr"])
def test_adapters_of_zeros_are_merged_like_others(method: str, tmp_path: Path) -> None:
    first = saved(tmp_path / "a", 0)
    for name in ("b", "c"):
        saved(tmp_path / name, 1)
        broken(tmp_path / name, "zero")
    one, none = tmp_path / "one", tmp_path / "none"
    assert call(tmp_path / "a", tmp_path / "b", "-m", method, "-o", one, "-q") == 0
    assert call(tmp_path / "b", tmp_path / "c", "-m", method, "-o", none, "-q") == 0
    for name in SHAPES:
        found = loaded(one / "a" if method == "emr" else one)[name]
        assert bool(found.isfinite().all())
        assert float((found * first[name]).sum()) > 0
        assert not loaded(none / "b" if method == "emr" else none)[name].any()


def test_a_bad_adapter_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1)
    broken(tmp_path / "b", "nan")
    words = ("-m", "flexlora", "--drop-bad", "--weights", "1,5", "-o", tmp_path / "out")
    assert call(tmp_path / "a", tmp_path / "b", *words) == 0
    assert "Left out" in capsys.readouterr().out
    for name, delta in loaded(tmp_path / "out").items():
        assert torch.allclose(delta, first[name], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-m", "rela"], "needs a federation"),
        (["-m", "tise"], "Did you mean 'ties'?"),
        (["-m", "ties", "--density", "1.5"], "density"),
        (["-m", "ties", "--density", "0"], "density"),
        (["-m", "flexlora", "--weights", "1"], "1 numbers for 2 adapters"),
        (["-m", "flexlora", "--weights", "1,x"], "is not a list of numbers"),
        (["-m", "flexlora", "--weights", "0,0"], "add up to 0"),
        (["-m", "flexlora", "--rank", "7"], "Rank 7 is larger"),
        (["-m", "regmean"], "statistics measured"),
    ],
)
def test_bad_options_are_refused(
    words: Sequence[str],
    sentence: str,
    tmp_path: Path,
    two: tuple[Path, Path, list[dict[str, Tensor]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, _ = two
    assert call(a, b, *words, "-o", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(
    tmp_path: Path, two: tuple[Path, Path, list[dict[str, Tensor]]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = two
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert call(a, b, "-m", "flexlora", "-o", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_same_folder_twice_is_refused(
    two: tuple[Path, Path, list[dict[str, Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(two[0], two[0], "-m", "flexlora", "-o", tmp_path / "out") == 2
    assert "given twice" in capsys.readouterr().err


def test_one_adapter_alone_is_said(
    two: tuple[Path, Path, list[dict[str, Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(two[0], "-m", "flexlora", "-o", tmp_path / "out") == 0
    assert "Only one adapter" in capsys.readouterr().out
    for name, delta in loaded(tmp_path / "out").items():
        assert torch.allclose(delta, two[2][0][name], atol=1e-5)
