"""Bytes by tensor: that they add up to what is booked, and that they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pfl_platform.ledger.bytes import wire_by_tensor, wire_bytes
from pfl_platform.report.messages import by_tensor, messages, shown
from pfl_platform.store.layout import ENVELOPE, file_chunks


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(2)},
        {"b/B": torch.zeros(3, 4, dtype=torch.bfloat16), "a/\u00e9": torch.zeros(5, 1, dtype=torch.int64)},
        {},
    ],
)
def test_lengths_add_up_to_the_file(tensors: dict[str, torch.Tensor]) -> None:
    found = wire_by_tensor(tensors)
    assert sum(found.values()) == wire_bytes(tensors) == sum(len(part) for part in file_chunks(tensors))
    assert set(found) == {*tensors, ENVELOPE}
    for key, tensor in tensors.items():
        assert found[key] > tensor.numel() * tensor.element_size() + len(key.encode())


TEXTS = {"one": {"x": 5, "y": 2}, "two": {"x": 7}}
RECORDS: list[dict[str, Any]] = [
    {"round_index": 0, "clients": {"a": {"messages": {"up": "one"}}, "b": {"messages": {}}, "c": {}}},
    {"round_index": 1, "clients": {"a": {"messages": {"up": "one", "down": "two"}}, "b": {"messages": {"up": "two"}}}},
]


def test_by_client_and_round() -> None:
    read: list[str] = []

    def text(address: str) -> str:
        read.append(address)
        return json.dumps(TEXTS[address])

    whole = messages(RECORDS, text, None, None)
    assert whole == {
        "a": {"up": {1: TEXTS["one"], 2: TEXTS["one"]}, "down": {2: TEXTS["two"]}},
        "b": {"up": {2: TEXTS["two"]}},
    }
    assert sorted(read) == ["one", "two"]
    assert messages(RECORDS, text, "b", None) == {"b": {"up": {2: TEXTS["two"]}}}
    assert messages(RECORDS, text, None, 1) == {"a": {"up": {1: TEXTS["one"]}}}
    first, second = by_tensor(whole)
    assert (first["tensor"], first["clients"], first["rounds"], first["up"], first["down"]) == ("x", 2, 2, 17, 7)
    assert (second["tensor"], second["clients"], second["rounds"], second["up"]) == ("y", 1, 2, 4)
    assert shown([first, second])[-1] == {"tensor": "all", "clients": "", "rounds": "", "up": "21 B", "down": "7 B"}


def test_through_the_command(pfl: Callable[..., Any], federation: Callable[..., Path], tmp_path: Path) -> None:
    """The sums by tensor are the serialised bytes of the ledger, in both directions."""
    path = federation(a="tiny-llama-s", b="tiny-llama-s")
    words = ["--benchmark", path, "--rounds=2", "--set=evaluation.baseline=false", "--set=evaluation.others=false"]
    out = tmp_path / "run"
    assert pfl("run", "--plugin", "fedsa-lora", *words, "--out", out).code == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    found = json.loads(pfl("show", out, "--messages", "--json").out)
    for name, entry in results["clients"].items():
        for way in ("up", "down"):
            booked = sum(size for tensors in found[name][way].values() for size in tensors.values())
            assert booked == entry["cost"][f"{way}_wire"] > 0
        assert list(found[name]["up"]) == ["1", "2"]
        assert list(found[name]["down"]) == ["2"]
        keys = {key for tensors in found[name]["up"].values() for key in tensors} - {ENVELOPE}
        assert {key.rpartition("/")[2] for key in keys} == {"A"}
    said = pfl("show", out, "--messages", "--client", next(iter(found)), "--round", "2")
    assert "q_proj/A" in said.out
    for words, sentence in (
        (["--client", "nobody", "--messages"], "No client of this run is called 'nobody'"),
        (["--round", "3", "--messages"], "--round 3 is not there; the run has finished 2 rounds."),
        (["--round", "1"], "give --messages with it"),
    ):
        refused = pfl("show", out, *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert sentence in refused.err
