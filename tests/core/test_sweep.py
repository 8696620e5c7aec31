"""Runs over values of settings and seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfl_platform.cli import main
from pfl_platform.cli.sweeping import Point, draw, found_of, points_of, seeds_of
from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import UserError
from pfl_platform.evaluation.matrix import report_of
from pfl_platform.recipes import Request


def test_all_combinations_in_all_seeds() -> None:
    # The benchmark is not named, but has an option: every resolution names the default one.
    request = Request("fedit", sets=["benchmark.num_clients=2", "rounds=3"])
    points = points_of(request, ["training.lr=0.1,0.2", "adapter.r=4,8"], "2")
    assert [(point.folder, point.config.seed, point.config.label) for point in points[:3]] == [
        ("lr=0.1_r=4/seed0", 0, "lr=0.1, r=4"),
        ("lr=0.1_r=4/seed1", 1, "lr=0.1, r=4"),
        ("lr=0.1_r=8/seed0", 0, "lr=0.1, r=8"),
    ]
    assert len(points) == 8
    assert {(p.config.training.lr, p.config.adapter.options["r"]) for p in points} == {
        (0.1, 4), (0.1, 8), (0.2, 4), (0.2, 8)
    }  # fmt: skip
    assert {point.config.benchmark.options["num_clients"] for point in points} == {2}


@pytest.mark.parametrize(
    ("texts", "seeds", "sentence"),
    [
        ([], "1", "Name each setting once, with its values"),
        (["training.lr=1", "training.lr=2"], "1", "Name each setting once, with its values"),
        (["seed=1,2"], "1", "Seeds are given by --seeds"),
        (["training.lr=1,1"], "1", "give each value once"),
        (["training.lr=1"], "0", "--seeds is a number of seeds, at least 1, or a list such as 0,5,7; '0' is neither"),
        (["training.lr"], "1", "'training.lr' is nothing to tune"),
        (["training.rate=1,2"], "1", "training.rate"),
    ],
)
def test_what_cannot_be_swept_is_said(texts: list[str], seeds: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        points_of(Request("fedit"), texts, seeds)


def test_seeds_are_counted_or_listed() -> None:
    assert (seeds_of("2"), seeds_of("0,5"), seeds_of("4,")) == ([0, 1], [0, 5], [4])


def results(config: RunConfig, last: float) -> dict[str, object]:
    return report_of(
        config=config.model_dump(mode="json"),
        benchmark="b",
        backbones={"a": "tiny"},
        matrix={0: {"a": {"a:s": last, "b:u": last / 2}}},
        baseline={},
        costs={"a": {}},
    )


def test_the_picture_shows_means_over_seeds(tmp_path: Path) -> None:
    """lr=1: 10 and 14, so 12 with deviation sqrt(8); Others are half of it."""
    part = Choice(name="x")
    points = []
    for lr in (1.0, 2.0):
        for seed in (0, 1):
            config = RunConfig(
                method="m", benchmark=part, adapter=part, objective=part, aggregator=part, seed=seed, label=f"lr={lr}"
            )
            points.append(Point({"training.lr": lr}, f"lr={lr}/seed{seed}", config))
    found = found_of(points, [results(p.config, score) for p, score in zip(points, (10, 14, 20, 20), strict=True)])
    assert found["keys"] == ["training.lr"]
    first, second = found["cells"]
    assert first["values"] == {"training.lr": 1.0}
    assert (first["self"]["mean"], first["others"]["mean"]) == (12.0, 6.0)
    assert first["self"]["std"] == pytest.approx(8**0.5)
    assert (second["self"]["mean"], second["self"]["std"]) == (20.0, 0.0)
    draw(found, tmp_path / "one.png")
    two = {"keys": ["a.x", "a.y"], "cells": [{"values": {"a.x": 1, "a.y": 2}, "self": {"mean": 3.0}}]}
    draw(two, tmp_path / "two.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("one.png", "two.png"))


def test_the_command_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "swept"
    words = [
        "sweep", "demo", "training.lr=0.001,0.002", "-p", "sft", "--out", str(out), "-q", "--set", "rounds=1",
        "--set", "local_steps=1", "--set", "benchmark.num_clients=1", "--set", "evaluation.items=2",
        "--set", "benchmark.backbones=tiny-llava-qwen-s", "--set", "evaluation.others=false",
    ]  # fmt: skip
    assert main(words) == 0
    first = (out / "lr=0.001" / "seed0" / "results.json").read_bytes()
    assert "lr=0.002" in capsys.readouterr().out
    (out / "lr=0.002" / "seed0" / "results.json").unlink()
    assert main(words) == 0
    assert (out / "lr=0.001" / "seed0" / "results.json").read_bytes() == first
    assert json.loads((out / "lr=0.002" / "seed0" / "results.json").read_bytes())["config"]["label"] == "lr=0.002"
    assert main([*words, "--set", "adapter.r=2"]) == 2
    assert "holds other runs than these" in capsys.readouterr().err
