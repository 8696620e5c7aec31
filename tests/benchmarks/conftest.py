"""The embedded benchmark, and a small federation on disk, drawn here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.drake_synth import plugin
from pfl_platform.data import FixedBenchmark

Record = dict[str, Any]
COLOUR_QUESTION = "Which colour?\nChoice list:[A. red | B. green | C. blue | D. grey]"
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (90, 90, 90)}


def record(name: str, question: str, answer: Any, image: Any = None) -> Record:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, **({} if image is None else {"image": image})}


class Federation:
    """A small federation on disk: client 1 has tasks with pictures, client 2 one without."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scenario: list[Any] = [
            {
                "client_id": 1,
                "model_id": "tiny-a",
                "datasets": [
                    {"dataset": "Colour", "subset_id": 0, "type": "multi-choice"},
                    {"dataset": "dummy", "subset_id": 0, "type": "multi-choice"},
                    {"dataset": "Same", "subset_id": 3, "type": "multi-choice"},
                ],
            },
            {
                "client_id": "two",
                "model_id": "tiny-b",
                "datasets": [{"dataset": "Sum", "subset_id": 0, "type": "open-ended", "metric": "RougeL"}],
            },
        ]
        self.records: dict[str, list[Any]] = {}
        for split, count in (("train", 10), ("test", 4)):
            colours = [list(COLOURS)[index % 4] for index in range(count)]
            paths = [self.draw(split, index, colour) for index, colour in enumerate(colours)]
            self.records[f"Colour/{split}/dataset-0"] = [
                record(str(index), COLOUR_QUESTION, "ABCD"[index % 4], path) for index, path in enumerate(paths)
            ]
            self.records[f"Same/{split}/dataset-3"] = [
                record("same", "<image>\n<image>\nSame?\nChoice list:[True, False].", colour == "red", [paths[0], path])
                for colour, path in zip(colours, paths, strict=True)
            ]
            self.records[f"Sum/{split}/dataset-0"] = [
                record(str(index), f"{split} {index} + 1 =", index + 1) for index in range(count)
            ]
        self.write()

    def draw(self, split: str, index: int, colour: str) -> str:
        path = f"dataset/Colour/images/{split}-{index}.png"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        red, green, blue = COLOURS[colour]
        Image.new("RGB", (12, 12), (red + index, green, blue + (split == "test"))).save(self.root / path)
        return path

    def write(self) -> None:
        self.put("scenarios/tiny.json", self.scenario)
        for name, content in self.records.items():
            self.put(f"dataset/{name}.json", content)

    def put(self, path: str, content: Any) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file


@pytest.fixture(scope="module")
def benchmark() -> FixedBenchmark:
    """The embedded benchmark as it is without options."""
    made = plugin.pfl_make_benchmark("drake-synth", {})
    assert isinstance(made, FixedBenchmark)
    return made


@pytest.fixture
def tiny(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "tiny")
