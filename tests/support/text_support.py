"""Small files of the project's own in the forms of the authors of text benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pfl_benchmarks.commonsense.options import TASKS
from pfl_benchmarks.flan.options import SETS


def put(path: Path, content: Any) -> Path:
    """A file with some text, or with JSON; of a `.jsonl`, a line for each record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        lines = path.suffix == ".jsonl"
        content = "".join(json.dumps(record) + "\n" for record in content) if lines else json.dumps(content)
    path.write_text(content, encoding="utf-8")
    return path


def flan_record(task: str, number: int, part: str) -> dict[str, str]:
    """Of every second task the options are shown."""
    free = len(task) % 2 == 0
    asked = f"{part} {task} {number}: what is it?"
    answer = ("yes", "no")[number % 2]
    return {
        "instruction": asked if free else f"{asked}\n\nOPTIONS:\n- yes\n- no",
        "output": f"It is {number}." if free else answer,
        "task": task,
        "category": "made_up",
    }


def make_flan(root: Path, name: str, train: int = 6, test: int = 3) -> Path:
    """A set of the benchmark `name` in FedDPA's form."""
    for client, task in enumerate(SETS[name].tasks):
        put(root / "8" / f"local_training_{client}.json", [flan_record(task, n, "train") for n in range(train)])
    records = [flan_record(task, n, "test") for task in reversed(SETS[name].tasks) for n in range(test)]
    put(root / "flan_test_200_selected_nstrict_1.jsonl", records)
    return root


def commonsense_record(task: str, number: int, part: str) -> dict[str, str]:
    options = ["true", "false"] if task == "boolq" else ["answer1", "answer2", "answer3"]
    answer = options[number % len(options)]
    return {
        "instruction": f"{part} {task} {number}: which?\n\nAnswer format: {'/'.join(options)}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def make_commonsense(root: Path, train: int = 6, test: int = 3) -> Path:
    """The eight tasks in LLM-Adapters' form."""
    for task in TASKS:
        for part, size in (("train", train), ("test", test)):
            put(root / "dataset" / task / f"{part}.json", [commonsense_record(task, n, part) for n in range(size)])
    return root
