"""Recipes that are tables: rows, grids, recipes like others, and published numbers beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.cli import running
from pfl_platform.errors import UserError
from pfl_platform.evaluation.comparison import summarise
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver, written_in
from pfl_platform.report.grids import client_grid, compare_grid

TABLE = """
summary: Two rules.
method: fedit
rounds: 3
training: {lr: 0.1}
rows:
  A & B: {aggregator: {name: ties, space: ab, density: 0.5}, published: {mean: 46.7, a: 40}}
  plain: {method: sft, rounds: 1}
"""
SMALL = """
like: table
rounds: 2
training: {clip: 0.5}
rows:
  A & B: {aggregator: {density: 0.9}}
  more: {training: {lr: 0.3}}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "table.yaml").write_text(TABLE, encoding="utf-8")
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path / "table.yaml"


def request(file: Path, **more: Any) -> Request:
    return Request(recipe=str(file), **more)


def test_every_row_is_laid_over_what_holds_for_all(table: Path) -> None:
    plan = running.plan(request(table))
    assert list(plan) == ["A-B", "plain"]
    first, second = plan.values()
    assert (first.method, first.rounds, first.training.lr, first.label) == ("fedit", 3, 0.1, "A & B")
    assert first.aggregator.model_dump() == {"name": "ties", "options": {"space": "ab", "density": 0.5}}
    assert first.published == {"mean": 46.7, "a": 40.0}
    assert (second.method, second.rounds, second.label, second.published) == ("sft", 1, "plain", {})
    assert second.aggregator.name == "none"  # the other method's own


def test_rows_can_be_picked_and_have_seeds(table: Path) -> None:
    assert list(running.plan(request(table), rows=["plain"])) == [""]
    assert list(running.plan(request(table), seeds=[0, 1])) == ["A-B/seed0", "A-B/seed1", "plain/seed0", "plain/seed1"]
    config = running.plan(request(table, sets=("rounds=7",)), rows=["A & B"])[""]
    assert config.rounds == 7  # what is typed comes last


def test_a_recipe_like_another_changes_what_it_says(table: Path) -> None:
    resolver = Resolver(PluginManager())
    small = request(table.with_name("small.yaml"))
    assert resolver.rows(small) == ["A & B", "plain", "more"]
    configs = {row: running.plan(small, rows=[row])[""] for row in resolver.rows(small)}
    assert [config.rounds for config in configs.values()] == [2, 1, 2]
    assert [config.training.lr for config in configs.values()] == [0.1, 0.1, 0.3]
    assert configs["A & B"].aggregator.options == {"space": "ab", "density": 0.9}
    assert configs["A & B"].training.clip == 0.5
    assert configs["A & B"].published["mean"] == 46.7


def test_a_grid_multiplies_rows(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "method: fedit\ngrid: {training.lr: [0.1, 0.2], rounds: [1, 2]}\nrows: {x: {}, y: {training: {clip: 0.5}}}\n",
        encoding="utf-8",
    )
    plan = running.plan(request(file))
    assert len(plan) == 8
    config = plan["y-lr=0.2-rounds=1"]
    assert (config.training.lr, config.rounds, config.training.clip, config.label) == (
        0.2,
        1,
        0.5,
        "y, lr=0.2, rounds=1",
    )


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        (TABLE, {"rows": ["planes"]}, "has no row 'planes'. Did you mean 'plain'?"),
        (TABLE, {"compare": ["sft"]}, "compares its own rows"),
        ("like: table\n", {}, "is like itself"),
        ("method: fedit\nrows: [a]\n", {}, "must hold rows by name"),
        ("method: fedit\nrows: {a: {trainign: {}}}\n", {}, "trainign"),
    ],
)
def test_bad_tables_are_refused(text: str, words: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "table.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        running.plan(request(file), **words)
    assert sentence in str(refused.value)


def test_a_table_needs_a_row_where_one_run_is_asked_for(table: Path) -> None:
    with pytest.raises(UserError, match="is a table of 2 rows; name one with --row"):
        Resolver(PluginManager()).resolve(request(table))
    with pytest.raises(UserError, match="--row names rows of a recipe"):
        running.plan(Request("sft"), rows=["plain"])
    assert set(written_in(table)) == {"method", "rounds", "training", "rows"}


def test_published_numbers_stand_beside_the_measured(pfl: Callable[..., Any]) -> None:
    def results(label: str, seed: int, published: dict[str, float]) -> dict[str, Any]:
        values = {key: {"mean": 50.0, "min": 50.0, "min_client": "a", "std": 0.0} for key in ("last", "auc", "gain")}
        values["baseline"] = {"mean": None, "min": None, "min_client": None, "std": None}
        kinds = ("self", "others", "unseen")
        own = {kind: {"last": 50.0, "auc": 50.0, "baseline": None, "gain": None} for kind in kinds}
        cost = dict.fromkeys(("up_payload", "down_payload", "up_wire", "down_wire", "seconds"), 1.0)
        tasks = {"a:t": 50.0}
        return {
            "method": "m", "benchmark": "b", "seed": seed, "rounds": 1, "local_steps": 1, "evaluated": [1],
            "clients": {"a": {"backbone": "x", "cost": cost, "tasks": tasks, **own}},
            "summary": dict.fromkeys(kinds, values), "cost": cost,
            "config": {"method": "m", "seed": seed, "label": label, "published": published},
        }  # fmt: skip

    runs = [results("TIES", 0, {"mean": 61.32, "t": 13.06}), results("TIES", 1, {"mean": 61.32}), results("own", 0, {})]
    groups = summarise(runs)
    assert [(group["label"], group["published"], group["seeds"]) for group in groups] == [
        ("TIES", 61.32, [0, 1]),
        ("own", None, [0]),
    ]
    column = next(column for column in compare_grid(runs).columns if column.head == ("Self", "published"))
    assert column.cells == ("61.32", "-")
    alone = next(column for column in client_grid(runs[0]).columns if column.head == ("Self", "published"))
    assert alone.cells == ("13.06", "61.32", "")
    assert not any(column.head[1] == "published" for column in client_grid(runs[2]).columns)
    assert not any(column.head[1] == "published" for column in compare_grid(runs[2:]).columns)
