"""The README's commands on a run, as they are written, with what stands for a name filled in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pfl_platform.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ELSEWHERE = ("run", "list", "costs", "plan")
"""Commands that have tests of their own: `test_documents`, `test_costs`, `test_plan`."""

SMALL = [
    "--set=benchmark.num_clients=2", "--set=benchmark.backbones=tiny-llava-qwen-s", "--set=benchmark.test_size=2",
    "--set=benchmark.validation_size=2", "--set=rounds=2", "--set=local_steps=1", "--set=engine.threads=1",
    "--set=evaluation.max_new_tokens=2", "--set=adapter.r=2",
]  # fmt: skip
LESS = {
    "adapt": ["--steps", "2", "--every", "1", "--items", "1"],
    "cka": ["--size", "8", "--out", "cka.png"],
    "line": ["--points", "2"],
    "sweep": ["-p", "sft", "--seeds", "1", *SMALL],
    "reproduce": [
        "--row",
        "SFT",
        "--seeds",
        "1",
        "--threads",
        "1",
        "--set=rounds=1",
        "--set=local_steps=1",
        "--set=evaluation.items=1",
    ],
    "assign": SMALL,
}
"""What makes a command small enough for a test, added behind it."""


def commands() -> list[str]:
    """Everything that the README shows but for what is tested elsewhere, without comments."""
    lines = [line.split(" # ")[0].strip() for line in README.splitlines() if line.startswith("pfl-platform ")]
    return [line for line in lines if line.split()[1] not in ELSEWHERE]


def filled(line: str, folder: Path) -> list[str]:
    """The words of a line: optional ones are given, names are those of `finished`."""
    names = {
        "ADAPTER...": "one/adapters/client-0 one/adapters/client-1", "RUN...": "one", "RUN": "one", "C": "client-0",
        "N": "1", "RECIPE": "demo", "KEY=A,B,C": "training.lr=0.001,0.002", "DIR": str(folder / "new"),
        "DIR...": "one", "FILE": str(folder / "file"), "PAPER/TABLE": "fedmosaic/table2-drake",
        "BENCHMARK": "drake-synth", "A,B": "tiny-llava-llama-s,tiny-llava-qwen-s",
    }  # fmt: skip
    words = re.sub(r"[\[\]]", "", line).split()[1:]
    return shlex.split(" ".join(names.get(word, word) for word in words)) + LESS.get(words[0], [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run in `one`, of a method whose personal models are made of two."""
    folder = tmp_path_factory.mktemp("documented")
    assert main(["run", "--plugin", "potara", *SMALL, "--out", str(folder / "one"), "-q"]) == 0
    return folder


def test_they_are_many() -> None:
    assert {line.split()[1] for line in commands()} >= {
        "resume", "show", "compare", "evaluate", "sweep", "adapt", "line", "cka", "merge", "reproduce", "assign",
        "leaderboard",
    }  # fmt: skip


@pytest.mark.parametrize("line", commands())
def test_it_runs(line: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    assert main(filled(line, tmp_path)) == 0
