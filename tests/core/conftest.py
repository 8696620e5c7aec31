"""A federation of texts on disk and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pfl_platform.cli import main

QUICK = (
    "--rounds=3", "--local-steps=2", "--threads=1", "--quiet", "--set=training.batch_size=2", "--set=adapter.r=4",
    "--set=evaluation.max_new_tokens=2", "--set=evaluation.every=1", "--set=backbone_options.init=0",
)  # fmt: skip


class Said(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def federation_in(root: Path, backbones: Mapping[str, str], **more: Mapping[str, Any]) -> Path:
    """Clients by id with their backbones, each with eight sums to learn. more: further keys of a client's entry."""
    (root / "scenarios").mkdir(parents=True)
    scenario = []
    for place, (client, backbone) in enumerate(backbones.items()):
        task = {"dataset": "Sums", "subset_id": place, "type": "open-ended"}
        scenario.append({"client_id": client, "model_id": backbone, "datasets": [task], **more.get(client, {})})
        for split, count in (("train", 8), ("test", 3)):
            file = root / "dataset" / "Sums" / split / f"dataset-{place}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            sums = [(f"{split}: {left} + {place} = ?", str(left + place)) for left in range(count)]
            records = [
                {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}
                for asked, answer in sums
            ]
            file.write_text(json.dumps(records), encoding="utf-8")
    (root / "scenarios" / "all.json").write_text(json.dumps(scenario), encoding="utf-8")
    return root


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Path]:
    """`federation(a="tiny-llama-s", ...)` writes a federation of texts and returns its folder."""

    def make(more: Mapping[str, Mapping[str, Any]] | None = None, **backbones: str) -> Path:
        return federation_in(tmp_path / "federation", backbones, **(more or {}))

    return make


@pytest.fixture
def quick() -> tuple[str, ...]:
    """Words that make a run short, for a process of its own."""
    return QUICK


@pytest.fixture
def pfl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`pfl("run", ...)` calls the command line in this process; quick settings stand behind the words of a run."""

    def call(*words: str | Path) -> Said:
        quick = QUICK if words[0] == "run" else ()
        capsys.readouterr()
        code = main([str(words[0]), *quick, *map(str, words[1:])])
        return Said(code, *capsys.readouterr())

    return call
