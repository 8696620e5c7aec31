"""Which build of torch the set-up chooses; pip itself is played."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Played = Callable[..., list[str]]


@pytest.fixture(scope="module")
def bootstrap(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", checkout / "tools" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def play(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Played:
    """Installs torch on a machine with or without a GPU, from an index with or without a CPU build; returns pip's
    calls."""

    def played(*, gpu: bool, cpu_build: bool, plan: list[str], **environment: str) -> list[str]:
        calls: list[str] = []

        def pip(self: Any, *words: str, quiet_failure: bool = False) -> subprocess.CompletedProcess[str]:
            calls.append(" ".join(word for word in words if word not in ("install", "--quiet", "--ignore-installed")))
            report = json.dumps({"install": [{"metadata": {"name": name}} for name in plan]})
            return subprocess.CompletedProcess(words, int(words[-1].endswith("+cpu") and not cpu_build), report, "")

        for name in ("TORCH", "TORCH_INDEX"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(bootstrap, "has_gpu", lambda: gpu)
        monkeypatch.setattr(bootstrap, "pinned", lambda package: f"{package}==9.9.9")
        monkeypatch.setattr(bootstrap.Environment, "pip", pip)
        monkeypatch.setattr(bootstrap.Environment, "has_torch", lambda *_: False)
        monkeypatch.setattr(bootstrap.Environment, "_works", lambda *_: True)
        bootstrap.Environment(Path("venv")).install_torch()
        return calls

    return played


def test_a_gpu_gets_the_ordinary_build(play: Played) -> None:
    assert play(gpu=True, cpu_build=True, plan=["torch", "nvidia-cublas"]) == ["torch==9.9.9"]


def test_without_a_gpu_the_cpu_build_comes_first(play: Played) -> None:
    assert play(gpu=False, cpu_build=True, plan=[]) == ["torch==9.9.9+cpu"]


def test_the_plain_version_is_taken_when_it_brings_no_cuda(play: Played) -> None:
    calls = play(gpu=False, cpu_build=False, plan=["torch", "sympy", "filelock"])
    assert calls == ["torch==9.9.9+cpu", "--dry-run --report - torch==9.9.9", "torch==9.9.9"]


@pytest.mark.parametrize("package", ["nvidia-cudnn-cu13", "nvidia_nccl", "triton", "cuda-bindings"])
def test_cuda_packages_are_not_pulled(play: Played, bootstrap: ModuleType, package: str) -> None:
    with pytest.raises(
        bootstrap.SetupError, match="only in its CUDA build .* TORCH_INDEX=<address>.* TORCH=torch==9.9.9"
    ):
        play(gpu=False, cpu_build=False, plan=["torch", package])


def test_the_user_may_decide(play: Played) -> None:
    assert play(gpu=False, cpu_build=False, plan=["triton"], TORCH="torch==8.0") == ["torch==8.0"]
    assert play(gpu=False, cpu_build=True, plan=[], TORCH_INDEX="there") == ["--index-url there torch==9.9.9+cpu"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: x)'", True),
        ("echo 'No devices were found'", False),
        ("echo 'GPU 0: gone'; exit 9", False),
        (None, False),
    ],
)
def test_a_gpu_is_one_that_the_driver_names(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: bool
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.has_gpu() is expected


def test_an_old_python_is_named(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (99, 0))
    with pytest.raises(
        bootstrap.SetupError, match=r"Python 99.0 or newer is needed, and .* is 3\.\d+; name one with PYTHON="
    ):
        bootstrap.main(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()
