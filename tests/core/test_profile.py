"""Where a round's time goes: by a stopwatch whose parts are known, and in a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pfl_platform.errors import RunStopped
from pfl_platform.federation import session
from pfl_platform.ledger.profiling import PARTS, Profile
from pfl_platform.report.markdown import results_markdown, to_markdown
from pfl_platform.report.profiles import profile_grid, read_profile
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing.bench import Bench
from run_support import left

REST = 0.5
"""Of a round's time, what may be in no named part, where other work on the machine may fall into any of them."""


def test_clients_side_by_side_train_as_they_do_unwatched(tmp_path: Path) -> None:
    settings = ("local_steps=2", "evaluation.baseline=false", "evaluation.others=false", "evaluation.max_new_tokens=1")
    settings += ("engine.batch_clients=2",)
    bench = Bench("sft", tmp_path, ("tiny-llama-s", "tiny-llama-s"), settings, rounds=1)
    plain = left(bench.run(clients=2))
    out = tmp_path / "profiled"
    session.run(bench.config(), out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark(2), profile=True)
    assert left(out) == plain
    first, second = (load_file(out / "adapters" / name / "adapter_model.safetensors") for name in "ab")
    assert any(not torch.equal(first[key], second[key]) for key in first), "nothing was trained"


def test_parts_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    profile = Profile(torch.device("cpu"))

    def work(seconds: float) -> None:
        now[0] += seconds

    with profile.part("rest"):
        work(1)
        with profile.part("forward"):
            work(2)
            with profile.part("data"):
                work(4)
            work(8)
        with profile.part("counting", whole=True):
            work(16)
            with profile.part("forward"):
                work(32)
    found = {name: seconds for name, seconds in profile.taken().items() if seconds}
    assert found == {"data": 4.0, "forward": 10.0, "counting": 48.0, "rest": 1.0}
    assert profile.timed("swap", work)(3.0) is None
    assert profile.taken()["swap"] == 3.0
    assert not any(profile.taken().values())


def test_what_several_ranks_tell_is_laid_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    file = tmp_path / "profile" / "rounds.json"
    assert read_profile(tmp_path) is None
    file.write_text(
        '{"2": [{"forward": 3.0, "waiting": 1.0}, {"forward": 1.0, "waiting": 3.0}], "3": [{"forward": 4.0}]}'
    )
    found = read_profile(tmp_path)
    assert found is not None
    assert found["rounds"] == {"2": {"forward": 2.0, "waiting": 2.0}, "3": {"forward": 4.0}}
    assert found["parts"] == {"forward": 6.0, "waiting": 2.0}
    assert found["ranks"] == {"0": {"forward": 7.0, "waiting": 1.0}, "1": {"forward": 1.0, "waiting": 3.0}}
    table = to_markdown(profile_grid(found))
    for row in ("| 2 | 2.00 | 2.00 |", "| rank 1 | 1.00 | 3.00 |", "| **all** | **6.00** | **2.00** |"):
        assert row in table


def test_a_resumed_run_is_profiled_from_there_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("local_steps=2", "evaluation.baseline=false", "evaluation.others=false", "evaluation.max_new_tokens=1")
    bench = Bench("sft", tmp_path, ("tiny-llama-s", "tiny-llama-s"), settings, rounds=2)
    out = tmp_path / "stopped"
    stop = monkeypatch.context()
    commit = RunFolder.commit_round

    def failing(folder: RunFolder, index: int, record: Any) -> None:
        if index == 1:
            raise RunStopped("enough")
        commit(folder, index, record)

    with stop as patch:
        patch.setattr(RunFolder, "commit_round", failing)
        with pytest.raises(RunStopped, match="enough"):
            session.run(bench.config(), out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark())
    results = session.resume(out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark(), profile=True)
    assert list(results["profile"]["rounds"]) == ["2"]
    assert left(out) == left(bench.run())


def test_a_profiled_run_tells_and_changes_nothing(tmp_path: Path) -> None:
    settings = ("local_steps=3", "evaluation.baseline=false", "evaluation.others=false", "evaluation.max_new_tokens=1")
    bench = Bench("fedit", tmp_path, ("tiny-llama-s", "tiny-llama-s"), settings, rounds=2)
    plain = bench.run()
    out = tmp_path / "profiled"
    results = session.run(
        bench.config(), out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark(), profile=True
    )
    assert left(out) == left(plain)
    rounds = results["profile"]["rounds"]
    assert list(rounds) == ["1", "2"]
    assert "ranks" not in results["profile"]
    assert "profile" not in json.loads((plain / "results.json").read_text())
    for number, found in rounds.items():
        assert set(found) == set(PARTS)
        record = json.loads((out / "rounds" / f"{int(number) - 1:04d}.json").read_text())
        clients = sum(entry["cost"]["seconds"] for entry in record["clients"].values())
        assert sum(found.values()) >= clients, "a round is longer than its clients' turns"
        assert found["rest"] <= sum(found.values()) * REST
        for part in ("data", "forward", "backward", "optimiser", "swap", "aggregation", "commit"):
            assert found[part] > 0, part
    assert rounds["2"]["evaluation"] > 0
    (trace,) = (out / "profile").glob("*.pt.trace.json")
    assert any("fused_adam" in str(event.get("name", "")) for event in json.loads(trace.read_text())["traceEvents"])
    grid = profile_grid(results["profile"])
    assert "backward" in {column.head[1] for column in grid.columns}
    assert "Where the time went" in results_markdown(results)
