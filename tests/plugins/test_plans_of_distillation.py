"""Plans of methods whose server reads predictions: every round is rehearsed, and weighs what a run's does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pfl_plugins
from pfl_platform.ledger.capacity import Capacity
from pfl_platform.ledger.outlook import Asked, outlook
from pfl_platform.testing.bench import Bench

METHODS = ("fedet", "fedmkt", "perada", "takfl")
BACKBONES = ("tiny-llama-s", "tiny-llama-m")
SETTINGS = (
    "local_steps=1",
    "public.size=5",
    "evaluation.every=2",
    "evaluation.baseline=false",
    "evaluation.others=false",
)


def test_these_are_all_that_exchange_predictions() -> None:
    root = Path(pfl_plugins.__file__).parent
    found = {file.parent.name for file in root.glob("*/*.py") if "distillation.exchange" in file.read_text("utf-8")}
    assert found == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_round_is_rehearsed(method: str, tmp_path: Path) -> None:
    bench = Bench(method, tmp_path, BACKBONES, SETTINGS)
    asked = Asked(bench.config(), bench.manager, bench.benchmark(), "cpu")
    rehearsed = asked.rehearsed()
    assert not rehearsed.stopped
    assert set(rehearsed.turns) == {0, 1}
    assert all(any(cost.flops > 0 for cost in rehearsed.server[index]) for index in (0, 1))
    if method != "fedmkt":  # what it sends and receives are predictions, as long as the answers of the public set
        return
    out = bench.run()
    foreseen = outlook(asked, rehearsed, Capacity(1 << 40, "x"))
    records = [json.loads(file.read_text()) for file in sorted((out / "rounds").glob("*.json"))]
    assert len(records) == 2
    for name in ("up_payload", "up_wire", "down_payload", "down_wire"):
        spent = [sum(entry["cost"][name] for entry in record["clients"].values()) for record in records]
        planned = [sum(getattr(cost, name) for cost in rehearsed.turns[index].values()) for index in (0, 1)]
        assert planned == spent
        assert foreseen["bytes"][name] == sum(spent) > 0
