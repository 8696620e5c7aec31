"""Self, Others, A_last and A_AUC: every number here can be redone by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_platform.config import Choice, RunConfig
from pfl_platform.evaluation import matrix as m
from pfl_platform.evaluation.comparison import over_runs, summarise
from pfl_platform.ledger.costs import total

# Clients a and b, two tasks each; a's second task is b's first one, too.
BEFORE = {"a:s": 10.0, "a:t": 20.0, "b:t": 30.0, "b:u": 40.0}
MATRIX = {
    4: {
        "a": {"a:s": 50.0, "a:t": 60.0, "b:t": 99.0, "b:u": 20.0},
        "b": {"a:s": 12.0, "a:t": 99.0, "b:t": 40.0, "b:u": 60.0},
    },
    9: {
        "a": {"a:s": 70.0, "a:t": 80.0, "b:t": 99.0, "b:u": 30.0, ":x": 7.0, ":y": 8.0},
        "b": {"a:s": 16.0, "a:t": 99.0, "b:t": 50.0, "b:u": 60.0, ":x": 1.0, ":y": 2.0},
    },
}
CONFIG = {"method": "mine", "seed": 3, "rounds": 10, "local_steps": 5, "benchmark": {"name": "bench"}}


def report(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "config": CONFIG,
        "benchmark": "bench",
        "backbones": {"a": "small", "b": "large"},
        "matrix": MATRIX,
        "baseline": {"a": BEFORE, "b": BEFORE},
        "costs": {"a": {"steps": 50, "up_payload": 100, "seconds": 1.5}, "b": {"steps": 40, "up_payload": 300}},
    }
    return m.report_of(**{**given, **changes})


def test_a_shared_task_is_self_for_both_and_others_for_neither() -> None:
    """a: Self (50 + 60) / 2, Others u alone. b: Self (40 + 60) / 2, Others s alone. The 99s count nowhere."""
    assert m.values_of("a", MATRIX[4]["a"]) == {"self": 55.0, "others": 20.0, "unseen": None}
    assert m.values_of("b", MATRIX[4]["b"]) == {"self": 50.0, "others": 12.0, "unseen": None}


def test_every_task_weighs_the_same() -> None:
    """Two others share t: their cells 10 and 30 make one task of 20. With u: (20 + 50) / 2, not (10 + 30 + 50) / 3."""
    cells = {"a:s": 0.0, "b:t": 10.0, "c:t": 30.0, "c:u": 50.0}
    assert m.values_of("a", cells)["others"] == 35.0


def test_forgetting_is_what_the_best_earlier_point_had_more() -> None:
    """a: s 50 -> 70, t 60 -> 80: twenty gained on each. b: t 40 -> 50, u 60 -> 60. Others' cells never count."""
    found = report()
    assert found["clients"]["a"]["forgetting"] == -20.0
    assert found["clients"]["b"]["forgetting"] == -5.0
    assert found["summary"]["forgetting"]["mean"] == -12.5
    three = {0: {"a": {"a:s": 90.0, "a:t": 10.0}}, **MATRIX}  # s: 90 - 70; t: 60 - 80, the best earlier one being 60
    begun = {index: {"a": ["a:s", "a:t"]} for index in three}
    assert m.forgetting("a", three, begun) == 0.0
    assert m.forgetting("a", {9: MATRIX[9]}, begun) is None


def test_a_score_from_before_a_task_began_is_not_forgotten() -> None:
    begun = {4: {"a": ["a:t"], "b": ["b:t", "b:u"]}, 9: {"a": ["a:s", "a:t"], "b": ["b:t", "b:u"]}}
    falling = {4: {"a": {"a:s": 100.0, "a:t": 60.0}}, 9: {"a": {"a:s": 70.0, "a:t": 50.0}}}
    assert m.forgetting("a", falling, begun) == 10.0  # t alone
    assert m.forgetting("b", falling, begun) is None


def test_seen_only_counts_tasks_from_when_they_begin() -> None:
    """a's s begins after the first point: Self is 60 there, not (50 + 60) / 2, and A_AUC (60 + 75) / 2."""
    begun = {4: {"a": ["a:t"], "b": ["b:t", "b:u"]}, 9: {"a": ["a:s", "a:t"], "b": ["b:t", "b:u"]}}
    seen = report(config={**CONFIG, "evaluation": {"seen_only": True}}, begun=begun)["clients"]["a"]
    assert seen["curve"]["self"] == [[5, 60.0], [10, 75.0]]
    assert seen["self"]["auc"] == 67.5
    assert seen["curve"]["others"] == [[5, 20.0], [10, 30.0]]
    assert report(begun=begun)["clients"]["a"]["self"]["auc"] == 65.0


def test_others_on_other_items_have_no_area() -> None:
    found = report(mixed=["a"])["clients"]
    assert found["a"]["others"] == {"last": 30.0, "auc": None, "baseline": 40.0, "gain": -10.0}
    assert found["b"]["others"]["auc"] == 14.0


def test_unseen_tasks_are_nobody_s() -> None:
    assert m.values_of("a", MATRIX[9]["a"]) == {"self": 75.0, "others": 30.0, "unseen": 7.5}


def test_what_was_not_measured_is_none_never_zero() -> None:
    assert m.values_of("a", {}) == {"self": None, "others": None, "unseen": None}
    assert m.values_of("a", {"a:s": 0.0}) == {"self": 0.0, "others": None, "unseen": None}
    # Everything that others have is a's as well: nothing is left for Others.
    assert m.values_of("a", {"a:s": 1.0, "b:s": 2.0})["others"] is None


def test_a_task_name_may_hold_colons() -> None:
    assert m.values_of("a", {"a:x:y": 1.0, "b:x:y": 9.0, "b:x": 5.0}) == {"self": 1.0, "others": 5.0, "unseen": None}


def test_last_and_area() -> None:
    """Rounds 5 and 10 of client a: Self 55, 75; so A_last 75 and A_AUC 65. Before: (10 + 20) / 2 = 15, so gain 60."""
    assert m.curve("a", "self", MATRIX) == {5: 55.0, 10: 75.0}
    assert m.client_values("a", "self", MATRIX, BEFORE) == {"last": 75.0, "auc": 65.0, "baseline": 15.0, "gain": 60.0}
    # Others: 20, 30; before 40 (u only); training on other data made it worse.
    assert m.client_values("a", "others", MATRIX, BEFORE) == {
        "last": 30.0,
        "auc": 25.0,
        "baseline": 40.0,
        "gain": -10.0,
    }


def test_the_area_of_a_curve_with_a_hole_is_not_known() -> None:
    """Unseen tasks are scored after the last round only."""
    assert m.client_values("a", "unseen", MATRIX, BEFORE) == {"last": 7.5, "auc": None, "baseline": None, "gain": None}


def test_the_order_of_rounds_in_the_record_does_not_count() -> None:
    turned = dict(reversed(MATRIX.items()))
    assert m.client_values("a", "self", turned, BEFORE) == m.client_values("a", "self", MATRIX, BEFORE)


def test_a_client_that_was_not_scored_in_the_last_round_has_no_last_value() -> None:
    assert m.client_values("a", "self", {4: MATRIX[4], 9: {}}, {}) == {
        "last": None,
        "auc": None,
        "baseline": None,
        "gain": None,
    }


def test_no_evaluation_at_all() -> None:
    empty = report(matrix={}, baseline={})
    assert empty["clients"]["a"]["self"] == dict.fromkeys(m.VALUES)
    assert empty["summary"]["self"]["last"] == {"mean": None, "std": None, "min": None, "min_client": None, "count": 0}
    assert empty["evaluated"] == []


def test_over_clients_is_the_population() -> None:
    """75 and 55: mean 65, deviation 10 (a sample's would be 14.1), lowest b."""
    assert m.over_clients({"a": 75.0, "b": 55.0, "c": None}) == {
        "mean": 65.0,
        "std": 10.0,
        "min": 55.0,
        "min_client": "b",
        "count": 2,
    }


def test_the_whole_report() -> None:
    found = report(shared_costs={"steps": 7})
    assert list(found) == [
        "format",
        "method",
        "benchmark",
        "seed",
        "rounds",
        "local_steps",
        "evaluated",
        "clients",
        "summary",
        "cost",
        "shared_cost",
        "tuning",
        "budget",
        "notes",
        "config",
    ]
    assert (found["method"], found["seed"], found["evaluated"]) == ("mine", 3, [5, 10])
    assert found["clients"]["b"] == {
        "backbone": "large",
        "self": {"last": 55.0, "auc": 52.5, "baseline": 35.0, "gain": 20.0},
        "others": {"last": 16.0, "auc": 14.0, "baseline": 10.0, "gain": 6.0},
        "unseen": {"last": 1.5, "auc": None, "baseline": None, "gain": None},
        "forgetting": -5.0,
        "curve": {"self": [[5, 50.0], [10, 55.0]], "others": [[5, 12.0], [10, 16.0]], "unseen": [[5, None], [10, 1.5]]},
        "tasks": MATRIX[9]["b"],
        "cost": total([{"steps": 40, "up_payload": 300}]),
    }
    assert found["summary"]["self"]["last"] == {
        "mean": 65.0,
        "std": 10.0,
        "min": 55.0,
        "min_client": "b",
        "count": 2,
    }
    assert found["summary"]["self"]["gain"]["mean"] == 40.0
    assert found["summary"]["others"]["auc"]["mean"] == (25 + 14) / 2
    assert (found["cost"]["steps"], found["cost"]["up_payload"], found["cost"]["seconds"]) == (90, 400, 1.5)
    assert found["shared_cost"]["steps"] == 7
    assert report()["shared_cost"] is None
    assert json.loads(json.dumps(found)) == found


def test_a_run_on_disk_is_reported_from_its_records() -> None:
    """Two clients on one backbone, scored after rounds 1 and 3 of 3; the second client sat out round 2."""
    part = Choice(name="x")
    config = RunConfig(
        method="m", benchmark=part, adapter=part, objective=part, aggregator=part, rounds=3, local_steps=4
    )

    def entry(scores: dict[str, float], steps: int = 4) -> dict[str, Any]:
        return {"scores": scores, "cost": {"steps": steps, "peak_memory": steps}, "metrics": {}}

    rounds = [
        {"round_index": 0, "clients": {"a": entry({"a:s": 10.0, "b:u": 0.0}), "b": entry({"b:u": 20.0, "a:s": 5.0})}},
        {"round_index": 1, "clients": {"a": entry({}, 6)}},
        {"round_index": 2, "clients": {"a": entry({"a:s": 30.0, "b:u": 8.0}), "b": entry({"b:u": 40.0, "a:s": 7.0})}},
    ]
    before = {"a:s": 1.0, "b:u": 2.0}
    folder = SimpleNamespace(
        path=Path("nowhere"),
        rounds=lambda: rounds,
        read_prepare=lambda: {"baseline": {"a": before, "b": before}, "frozen": {}},
        read_tuning=lambda: None,
        read_cells=lambda: {
            "clients": {"a": {":x": {"score": 9.0, "items": 5}, "b:u": {"score": 12.0, "items": 5}}},
            "baseline": {"a": {":x": {"score": 4.0, "items": 5}}},
        },
    )
    clients = [
        SimpleNamespace(client_id="b", tasks=(SimpleNamespace(name="u"),)),
        SimpleNamespace(client_id="a", tasks=(SimpleNamespace(name="s"),)),
    ]
    setup = SimpleNamespace(
        config=config,
        benchmark=SimpleNamespace(name="bench", clients=clients),
        backbone_of={"a": "tiny", "b": "tiny"},
        metrics={"one": SimpleNamespace(notes=("Said of one.",)), "other": SimpleNamespace(notes=())},
    )
    found = m.results(folder, setup)  # type: ignore[arg-type]
    assert list(found["clients"]) == ["b", "a"]
    assert found["notes"] == ["Said of one."]
    assert found["evaluated"] == [1, 3]
    assert found["clients"]["a"]["self"] == {"last": 30.0, "auc": 20.0, "baseline": 1.0, "gain": 29.0}
    assert found["clients"]["b"]["others"] == {"last": 7.0, "auc": 6.0, "baseline": 1.0, "gain": 6.0}
    # What was scored after the run: an unseen task, and more items of b's, in the last round only.
    assert found["clients"]["a"]["unseen"] == {"last": 9.0, "auc": None, "baseline": 4.0, "gain": 5.0}
    assert found["clients"]["a"]["curve"]["others"] == [[1, 0.0], [3, 12.0]]
    assert found["clients"]["a"]["forgetting"] == -20.0
    assert found["clients"]["a"]["cost"]["steps"] == 14
    assert found["clients"]["a"]["cost"]["peak_memory"] == 6
    assert found["clients"]["b"]["cost"]["steps"] == 8
    assert found["config"]["rounds"] == 3


def run(method: str, seed: int, last: float, **options: Any) -> dict[str, Any]:
    """A one-client run whose Self after the only round is `last`."""
    config = {"method": method, "seed": seed, "rounds": 1, "local_steps": 1, "observers": [seed]}
    return m.report_of(
        config={**config, "objective": {"options": options}},
        benchmark="bench",
        backbones={"a": "tiny"},
        matrix={0: {"a": {"a:s": last}}},
        baseline={},
        costs={"a": {"seconds": 2.0 * seed}},
    )


def test_runs_are_grouped_by_setting_over_seeds() -> None:
    """Seeds 0, 1, 2 with 50, 52, 54: mean 52, sample deviation 2; seconds 0, 2, 4: mean 2, deviation 2."""
    groups = summarise([run("x", 0, 50.0), run("y", 0, 10.0), run("x", 2, 54.0), run("x", 1, 52.0)])
    assert [(group["label"], group["seeds"]) for group in groups] == [("x", [0, 2, 1]), ("y", [0])]
    assert groups[0]["self"]["last"] == {"mean": 52.0, "std": 2.0, "count": 3}
    assert groups[0]["min"] == {"mean": 52.0, "std": 2.0, "count": 3}
    assert groups[0]["cost"]["seconds"] == {"mean": 2.0, "std": 2.0, "count": 3}
    assert groups[0]["others"]["last"] == {"mean": None, "std": None, "count": 0}
    assert groups[1]["self"]["last"] == {"mean": 10.0, "std": None, "count": 1}


def test_ablations_of_one_method_are_told_apart_by_what_differs() -> None:
    """Averaging them as if they were seeds would be wrong."""
    groups = summarise([run("x", 0, 1.0), run("x", 0, 2.0, ema="off"), run("x", 1, 3.0, ema="off"), run("y", 0, 4.0)])
    assert [(group["label"], group["seeds"]) for group in groups] == [("x", [0]), ("x (ema=off)", [0, 1]), ("y", [0])]


scores = st.floats(0, 100)


@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("stuv")), scores, min_size=1), st.data())
def test_raising_any_score_lowers_nothing(cells: dict[tuple[str, str], float], data: st.DataObject) -> None:
    before = {":".join(key): value for key, value in cells.items()}
    key = data.draw(st.sampled_from(sorted(before)))
    after = {**before, key: before[key] + 1}
    for client in "abc":
        old, new = m.values_of(client, before), m.values_of(client, after)
        for kind in m.KINDS:
            low, high = old[kind], new[kind]
            assert (low is None) == (high is None)
            assert low is None or high is None or high >= low


@given(st.dictionaries(st.integers(1, 80), scores, min_size=1))
def test_the_area_lies_between_the_lowest_and_the_highest_point(points: dict[int, float]) -> None:
    area = m.a_auc(points)
    assert area is not None
    rounding = 1e-12 * max(map(abs, points.values()))
    assert min(points.values()) - rounding <= area <= max(points.values()) + rounding
    assert m.a_last(points) == points[max(points)]


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_a_mean_of_nothing_is_not_known(values: list[None]) -> None:
    assert m.mean(values) is None
    assert over_runs(values) == {"mean": None, "std": None, "count": 0}
