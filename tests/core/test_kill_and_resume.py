"""A real process is killed at random points and resumed; what it leaves is that of a run that was not killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.plugins import available
from run_support import left

METHODS = sorted(name for name, plugin in available("method").items() if plugin.module.startswith("pfl_plugins."))
USUAL = ("fedit", "fedmosaic", "potara", "sft", "takfl")
"""Those that are killed in every run of the tests: they differ in what can be interrupted (alignment, a server that
trains, a measurement before evaluation). The contract kit kills all methods, inside one process."""
SETS = [
    "rounds=3",
    "local_steps=3",
    "adapter.r=4",
    "training.batch_size=2",
    "stream.sampler=least_used",
    "benchmark.num_clients=3",
    "benchmark.train_size=12",
    "benchmark.test_size=3",
    "benchmark.validation_size=3",
    "evaluation.every=2",
    "evaluation.max_new_tokens=3",
    "public.size=8",
    "backbone_options.init=0",
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from pfl_platform.cli import main; sys.exit(main())", *words]


def start(method: str, out: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    words = ["run", "--plugin", method, "--out", str(out), "--threads", "1", "--quiet"]
    for setting in SETS:
        words += ["--set", setting]
    return subprocess.Popen(command(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def lasting(out: Path) -> dict[str, Any]:
    """What must not depend on kills: adapters and predictions as bytes, scores and payloads as numbers."""
    found: dict[str, Any] = dict(left(out))
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for client, entry in results["clients"].items():
        cost = {key: value for key, value in entry.pop("cost").items() if "seconds" not in key and key != "peak_memory"}
        found[client] = {**entry, **cost}
    return found


@pytest.mark.parametrize(
    "method", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_killed_at_random_points(method: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PFL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    elsewhere = {**environment, "PFL_CACHE": str(tmp_path / "another cache")}  # so that alignment is killed, too
    whole = start(method, tmp_path / "whole", environment)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output.decode()
    length = happened(tmp_path / "whole")
    dice = random.Random(f"kill {method}")
    hit = 0
    process = start(method, tmp_path / "killed", elsewhere)
    for _ in range(2):
        wait_for_a_run(tmp_path / "killed", process)
        wait_for_events(tmp_path / "killed", process, happened(tmp_path / "killed") + dice.uniform(0.0, 0.4) * length)
        time.sleep(dice.uniform(0.0, 0.1))
        hit += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        words = command("resume", str(tmp_path / "killed"), "--quiet")
        process = subprocess.Popen(words, env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    assert hit > 0, "no kill met a process that was still running"
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "whole")


def wait_for_a_run(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the folder is a run: a process that is killed before has left nothing to resume."""
    while not (out / "run.json").exists():
        assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
        time.sleep(0.05)


def happened(out: Path) -> int:
    """How many events a run has written down. Unlike seconds, they do not depend on what else the machine does."""
    journal = out / "events.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_events(out: Path, process: subprocess.Popen[bytes], count: float) -> None:
    while happened(out) < count and process.poll() is None:
        time.sleep(0.02)
