"""Zero-shot scores of a bare backbone: likelihoods against plain ones, and the harness itself where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pfl_platform.adapters.host import Host
from pfl_platform.data import Sample, Turn
from pfl_platform.evaluation.harness import likelihoods
from pfl_platform.plugins import PluginManager

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


def test_likelihoods_are_those_of_the_answer_tokens() -> None:
    host = Host(PluginManager().make("backbone", "tiny-llama-s", {}))
    samples = [
        Sample("a", (Turn("Which colour is the sky?", "blue"),)),
        Sample("b", (Turn("Say red, not green.", "red red"),)),
    ]
    together, codec = likelihoods(host, samples), host.backbone.codec
    for sample, (total, greedy) in zip(samples, together, strict=True):
        encoded = codec.encode([sample])
        with torch.no_grad():
            logits = host.backbone.model(**encoded.inputs).logits[0, :-1].float()
        labels = encoded.labels[0, 1:]
        assert total == pytest.approx(-float(functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-4)
        picked = labels != -100
        assert greedy == bool((logits.argmax(-1) == labels)[picked].all())


def test_without_the_package_it_is_one_sentence(pfl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    said = pfl("evaluate", "tiny-llama-s", "--zero-shot", "--task", "x.yaml")
    assert said.code == 2
    assert "pip install 'pfl-platform[zero-shot]'" in said.err
    assert pfl("evaluate", "tiny-llama-s", "--zero-shot").err.startswith("error: Name the tasks with --task")
    assert pfl("evaluate", "tiny-llama-s", "--task", "x").err.startswith("error: --task names tasks of --zero-shot")


def test_a_local_task_is_scored(tmp_path: Path, command: Callable[..., Any]) -> None:
    """In a process of its own: the harness warns of much, and warnings are errors here."""
    pytest.importorskip("lm_eval", reason="the extra zero-shot is not installed")
    rows = [{"question": f"Say {word}.", "choices": [word, "other"], "label": 0} for word in ("red", "blue")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file = tmp_path / "colours.yaml"
    file.write_text(TASK.replace("DATA", str(tmp_path / "data.jsonl")), encoding="utf-8")
    words = ("evaluate", "tiny-llama-s", "--zero-shot", "--task", file, "--json")
    said = command(*words, env={"HF_HUB_OFFLINE": "1"}, timeout=500)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout[said.stdout.index("{") :])
    assert found["tasks"]["colours"]["acc"] in (0.0, 0.5, 1.0)
