"""Launches of two and three ranks, on CPU, through the real launchers.

A launch takes as long as most test files, so each does many things: one in `ranks_worker.py`, whose findings are looked
at here one by one, and the command line's two, of which a rank is killed in the first and the second goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.cli import main
from pfl_platform.engines.ranks.launcher import free_port
from pfl_platform.testing.ranks import difference

pytestmark = pytest.mark.timeout(900)
WORKER = Path(__file__).parent.parent / "support" / "ranks_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What two ranks of a launch by torchrun have found out."""
    folder = tmp_path_factory.mktemp("ranks")
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port({}))]
    done = subprocess.run(
        [sys.executable, *words, str(WORKER), str(folder / "found.json"), str(folder)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: Mapping[str, Any] = json.loads((folder / "found.json").read_text())
    return result


@pytest.mark.parametrize(
    "name",
    ["ditto at stage 0", "ditto at stage 1", "ditto at stage 2", "fedmosaic at stage 2", "accumulating"],
)
def test_two_ranks_end_with_the_bits_of_one_process(found: Mapping[str, Any], name: str) -> None:
    assert found[name] == 0.0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_shards_end_close_to_one_process(found: Mapping[str, Any], stage: int) -> None:
    assert 0.0 < found[f"two shards at stage {stage}"] <= 1e-5, "zero would mean that nothing was shared"


def test_a_backbone_is_spread_at_stage_3(found: Mapping[str, Any]) -> None:
    assert found["held"] == {"blocks": pytest.approx(0.5, abs=0.01), "the rest": 1.0}


@pytest.mark.parametrize("name", ["each rank's own on disk", "each rank's own in memory"])
def test_blocks_that_lie_elsewhere_change_no_bit(found: Mapping[str, Any], name: str) -> None:
    assert found[name] == 0.0


def test_shared_blocks_lie_in_files_without_names(found: Mapping[str, Any]) -> None:
    assert found["two shards on disk"] == found["two shards at stage 3"]
    laid, there, named = found["mapped"]
    assert laid == there > 0
    assert named == 0


def test_what_goes_wrong_silently_is_seen(found: Mapping[str, Any]) -> None:
    """The same comparison, of drivers that do what one would do first. The first shows that nothing else is at fault
    in them."""
    assert found["as it should be"] < 1e-5
    for name in ("moments not cleared", "slots alternate at stage 1", "slots alternate at stage 2", "no mpu"):
        assert found[name] > 1e-3, name


def test_fifty_clients_leave_no_memory_behind(found: Mapping[str, Any]) -> None:
    assert found["memory"] < 5.0


def test_the_error_of_a_rank_is_the_error_of_the_launch(found: Mapping[str, Any]) -> None:
    said = found["a rank's error"]
    assert said.startswith("The picture of a cat is broken. It happened at 'a' in round 1, after 0 of its local steps.")
    assert said.count("pfl-platform resume") == 1


SETTINGS = ["rounds=3", "local_steps=3", "engine.threads=1", "evaluation.items=1", "evaluation.others=false"]
RUN = ["run", "--plugin", "fedit", "--benchmark", "drake-synth", "--quiet"]
RUN += [word for text in (*SETTINGS, "evaluation.baseline=false") for word in ("--set", text)]


def ranks_of(process: int) -> dict[int, int]:
    """Rank -> process, of the ranks that a command has started."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(part.split("=", 1) for part in entry.read_text().split("\0") if "=" in part)
            words = (entry.parent / "cmdline").read_text()
        except OSError:
            continue
        if variables.get("PFL_TEST") == str(process) and "RANK" in variables and "launcher" not in words:
            found[int(variables["RANK"])] = int(entry.parent.name)
    return found


def test_a_killed_rank_ends_the_launch_and_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    """With no compiler within reach, and a lock that a build has left behind."""
    extensions = tmp_path / "home" / ".cache" / "torch_extensions" / "py" / "deepspeed_shm_comm"
    extensions.mkdir(parents=True)
    (extensions / "lock").touch()
    tag = str(os.getpid())
    environment = {**os.environ, "PATH": str(tmp_path / "no-programs"), "PFL_TEST": tag, "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": str(tmp_path / "home"), "TORCH_EXTENSIONS_DIR": str(extensions.parent)}
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pfl_platform"]
    engine = ["--engine", "deepspeed", "--ranks", "2", "--zero", "2", "--out", str(out)]
    process = subprocess.Popen([*command, *RUN, *engine], env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "rounds" / "0000.json").exists():
        time.sleep(0.1)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    os.kill(ranks_of(int(tag))[1], signal.SIGKILL)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == 1
    assert "Rank 1 has ended without a word" in said
    assert f"pfl-platform resume {out}" in said
    assert not ranks_of(int(tag)), "a rank is still there"
    assert 1 <= len(list((out / "rounds").glob("*.json"))) < 3
    assert not (out / "results.json").exists()
    finished = len(list((out / "rounds").glob("*.json")))

    more = subprocess.run(
        [*command, "resume", str(out), "--ranks", "3", "--quiet", "--profile"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert more.returncode == 0, more.stderr
    assert main([*RUN, "--out", str(tmp_path / "alone")]) == 0
    assert difference(tmp_path / "alone", out) == 0.0
    assert (tmp_path / "alone" / "predictions.jsonl").read_bytes() == (out / "predictions.jsonl").read_bytes()
    assert more.stdout.count("client-0") == 1, "more than one rank printed"
    check_profile(out, resumed=len(list((out / "rounds").glob("*.json"))) - finished, told=more.stdout)


def check_profile(out: Path, resumed: int, told: str) -> None:
    """Every rank has traced its first steps and told where its time went, in the rounds since the run was resumed."""
    profile = json.loads((out / "results.json").read_text())["profile"]
    assert len(profile["rounds"]) == resumed
    assert set(profile["ranks"]) == {"0", "1", "2"}
    for rank, found in profile["ranks"].items():
        for part in ("data", "forward", "backward", "optimiser", "swap", "waiting"):
            assert found[part] > 0, (rank, part)
        (trace,) = (out / "profile").glob(f"rank-{rank}.*.pt.trace.json")
        names = {str(event.get("name", "")) for event in json.loads(trace.read_text())["traceEvents"]}
        assert any("AccumulateGrad" in name for name in names)
        assert f"rank {rank}" in told
    assert profile["ranks"]["0"]["commit"] > profile["ranks"]["1"]["commit"]
    wholes = [sum(found.values()) for found in profile["ranks"].values()]
    assert max(wholes) < 1.5 * min(wholes), "ranks begin and end a round together"
