"""Which client gets which backbone: by what local training gains, or by chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pfl_platform.cli import main
from pfl_platform.cli.assigning import _benchmark_options, _check_samples, by_chance, by_gain, counts_of
from pfl_platform.data import FixedBenchmark
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.testing.bench import client

SETS = (
    "--set=benchmark.num_clients=3", "--set=benchmark.test_size=2", "--set=benchmark.validation_size=2",
    "--set=rounds=1", "--set=local_steps=1", "--set=engine.threads=1", "--set=evaluation.max_new_tokens=2",
    "--set=adapter.r=2",
)  # fmt: skip


def test_clients_are_counted_by_the_ratio() -> None:
    assert counts_of("3:7", ["a", "b"], 10) == [3, 7]
    assert counts_of("3:7", ["a", "b"], 9) == [3, 6]  # 2.7 and 6.3
    assert counts_of("0:1", ["a", "b"], 4) == [0, 4]
    for ratio in ("3", "3:x", "0:0", "-1:2"):
        with pytest.raises(UserError, match="--ratio"):
            counts_of(ratio, ["a", "b"], 10)


def test_who_gains_most_gets_the_largest() -> None:
    """FedMosaic's Table 8, in the form of three backbones: gains of the last over the first are 1, 9, 5, 9."""
    table = {
        "1": {"s": 50.0, "m": 90.0, "l": 51.0}, "2": {"s": 40.0, "m": 0.0, "l": 49.0},
        "3": {"s": 60.0, "m": 61.0, "l": 65.0}, "4": {"s": 10.0, "m": 11.0, "l": 19.0},
    }  # fmt: skip
    assert by_gain(table, ["s", "m", "l"], [1, 1, 2]) == {"1": "s", "2": "l", "3": "m", "4": "l"}
    assert by_gain(table, ["s", "m", "l"], [2, 1, 1]) == {"1": "s", "2": "l", "3": "s", "4": "m"}  # of equals the first


def test_chance_goes_by_the_seed() -> None:
    clients = [str(index) for index in range(10)]
    drawn = [by_chance(clients, ["a", "b"], [3, 7], seed) for seed in range(8)]
    assert drawn[0] == by_chance(clients, ["a", "b"], [3, 7], 0)
    assert len({repr(found) for found in drawn}) > 1
    assert all(list(found.values()).count("a") == 3 and list(found) == clients for found in drawn)


def test_a_scenario_is_written_and_nothing_is_trained_twice(
    pfl: Callable[..., Any], tmp_path: Path, executed: list[Any]
) -> None:
    file = tmp_path / "scenario.yaml"
    words = ("assign", "drake-synth", "--by", "sft", "--backbones", "tiny-llava-llama-s,tiny-llava-qwen-s",
             "--ratio", "1:2", "--out", file, *SETS)  # fmt: skip
    assert pfl(*words, "-q").code == 0
    trained = len(executed)
    assert trained >= 6  # three clients on each of two backbones
    said = json.loads(pfl(*words, "--json").out)
    assert len(executed) == trained
    scenario = yaml.safe_load(file.read_text(encoding="utf-8"))
    given = list(scenario["backbones"].values())
    assert sorted(given) == ["tiny-llava-llama-s", "tiny-llava-qwen-s", "tiny-llava-qwen-s"]
    gains = {
        client: entry["scores"]["tiny-llava-qwen-s"] - entry["scores"]["tiny-llava-llama-s"]
        for client, entry in said["clients"].items()
    }
    (small,) = (client for client, name in scenario["backbones"].items() if name == "tiny-llava-llama-s")
    assert gains[small] == min(gains.values())
    assert main(["run", "-p", "sft", "--recipe", str(file), "--print-config"]) == 0  # it is a recipe
    assert scenario["benchmark"]["options"] == {"num_clients": 3, "test_size": 2, "validation_size": 2}
    other = pfl(*words, "--set=training.lr=0.5")
    assert other.code == 2
    assert "holds other runs than these" in other.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--backbones", "tiny-llama-s"), "takes two names or more"),
        (("--backbones", "tiny-llama-s,tiny-lama-m"), "There is no backbone called 'tiny-lama-m'"),
        (
            ("--backbones", "tiny-llava-llama-s,tiny-llava-qwen-s", "--by", "luck"),
            "--by is a method or random; 'luck' is neither",
        ),
        (("--backbones", "tiny-llava-llama-s,tiny-llava-qwen-s", "--ratio", "3"), "--ratio has a whole number"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...], sentence: str, pfl: Callable[..., Any], tmp_path: Path
) -> None:
    said = pfl("assign", "drake-synth", *words, "--out", tmp_path / "scenario.yaml")
    assert said.code == 2
    assert sentence in said.err
    assert not list(tmp_path.iterdir())


def test_clients_without_samples_to_decide_by_are_named() -> None:
    one = client("a", "", 4)
    bare = replace(one, tasks=tuple(replace(task, validation=()) for task in one.tasks))
    config = Resolver(PluginManager()).resolve(Request("sft", options={"evaluation.split": "validation"}))
    _check_samples(config, FixedBenchmark("some", (one,), "content"))
    with pytest.raises(UserError, match="'a' has no validation samples, on which backbones are compared"):
        _check_samples(config, FixedBenchmark("some", (bare,), "content"))


def test_paths_in_a_scenario_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "public.json").touch()
    found = _benchmark_options(["benchmark.public=public.json", "benchmark.test_size=2", "training.lr=0.1"])
    assert found == {"public": str(tmp_path / "public.json"), "test_size": 2}
