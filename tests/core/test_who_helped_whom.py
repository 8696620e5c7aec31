"""Who helped whom, and what a score has cost: from records on disk, by hand, and through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.errors import UserError
from pfl_platform.report.helped import draw, helped, without_sharing
from pfl_platform.report.tradeoffs import draw as draw_tradeoffs
from pfl_platform.report.tradeoffs import tradeoff


def results(a: float, b: float, *, up: int = 0, seed: int = 0) -> dict[str, Any]:
    clients = {name: {"self": {"last": score}, "curve": {"self": [[2, score]]}} for name, score in (("a", a), ("b", b))}
    return {"method": "m", "benchmark": "x", "seed": seed, "clients": clients, "cost": {"up_payload": up}}


def record(index: int, weights: dict[str, dict[str, float]] | None) -> dict[str, Any]:
    cost = {"flops": 10.0, "up_payload": 3, "down_payload": 2, "score_payload": 1}
    return {
        "round_index": index,
        "summary": {"report": {} if weights is None else {"weights": weights}},
        "clients": {"a": {"cost": cost}, "b": {"cost": cost}},
        "shared_cost": {"flops": 4.0},
    }


ROUNDS = [
    record(0, None),
    record(1, {"a": {"a": 1.0}}),
    record(2, {"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.25, "b": 0.75}}),
]


def test_matrices_and_gains_by_hand(tmp_path: Path) -> None:
    found = helped(results(60.0, 40.0, up=5), ROUNDS, results(50.0, 45.0))
    assert found["rounds"] == {2: [[1.0, 0.0], [None, None]], 3: [[0.5, 0.5], [0.25, 0.75]]}
    assert found["mean"] == [[0.75, 0.25], [0.25, 0.75]]
    assert found["gain"] == {"a": 10.0, "b": -5.0}
    draw(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert helped(results(60.0, 40.0), ROUNDS, None)["gain"] == {"a": None, "b": None}


def test_only_a_run_that_shared_nothing_is_compared_with() -> None:
    mine = results(60.0, 40.0, up=5)
    assert without_sharing(mine, [results(1, 1, up=3), results(2, 2, seed=1)]) is None
    alone = results(3, 3)
    assert without_sharing(mine, [results(1, 1, up=3), alone]) is alone


def test_a_server_that_weighs_nobody_is_told_so() -> None:
    with pytest.raises(UserError, match="does not say how much each client weighed"):
        helped(results(1.0, 2.0), ROUNDS[:1], None)


def test_costs_add_up_to_each_evaluation(tmp_path: Path) -> None:
    found = tradeoff(results(60.0, 40.0), ROUNDS)  # evaluated after round 2
    assert found == {"flops": [(2 * (2 * 10.0 + 4.0) / 2, 50.0)], "bytes": [(2 * 2 * 6 / 2, 50.0)]}
    early = {"flops": 6.0, "up_payload": 4, "down_payload": 2, "seconds": 9.0}  # of preparation, shared by both
    assert tradeoff(results(60.0, 40.0), ROUNDS, early) == {"flops": [(27.0, 50.0)], "bytes": [(15.0, 50.0)]}
    files = draw_tradeoffs({"m": found}, tmp_path)
    assert [file.name for file in files] == ["accuracy-flops.png", "accuracy-bytes.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_through_the_commands(pfl: Callable[..., Any], federation: Callable[..., Path], tmp_path: Path) -> None:
    path = federation(a="tiny-llama-s", b="tiny-llama-s")
    words = ["--benchmark", path, "--rounds=1", "--set=evaluation.baseline=false", "--set=evaluation.others=false"]
    both = tmp_path / "both"
    assert pfl("run", "--plugin", "nbs", "--compare", "sft", *words, "--out", both).code == 0
    said = pfl("show", both / "nbs", "--who-helped-whom")
    assert said.code == 0, said.err
    assert "gain" in said.out
    found = json.loads((both / "nbs" / "who-helped-whom.json").read_text(encoding="utf-8"))
    assert sum(found["rounds"]["1"][0]) == pytest.approx(1.0)
    assert None not in found["gain"].values()
    assert (both / "nbs" / "who-helped-whom.png").is_file()
    refused = pfl("show", both / "sft", "--who-helped-whom")
    assert refused.code == 2
    assert "does not say" in refused.err
    assert pfl("compare", both, "--plots", tmp_path / "plots").code == 0
    assert (tmp_path / "plots" / "accuracy-bytes.png").is_file()
    assert pfl("line", both / "nbs").code == 2
    assert pfl("line", tmp_path / "nowhere").code == 2
