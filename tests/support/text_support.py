"""Small files of the project's own in the forms of the authors of text benchmarks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from PIL import Image

from pfl_benchmarks.commonsense.options import TASKS
from pfl_benchmarks.flan.options import SETS
from pfl_benchmarks.suites import sheet
from pfl_benchmarks.suites.scope import CATEGORIES


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


def make_suite(root: Path, name: str) -> Path:
    """All files of a published federation in the folder form: three train and two test records per task."""
    written = sheet.card(name)
    groups = [*written["clients"].values(), *written.get("unseen", {}).values()]
    pictures = name in ("drake", "hflb")
    if pictures:
        (root / "dataset").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (9, 9, 9)).save(root / "dataset" / "one.png")
    for task in (task for group in groups for task in group):
        slot = sheet.slot(task, written)
        for part, size in (("train", 3), ("test", 2)):
            records = []
            for number in range(size):
                asked = f"{task} {part} {number}? Choice list:[A. this | B. that]"
                turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "BA"[number % 2]}]
                picture = {"image": "dataset/one.png"} if pictures else {}
                records.append({"id": number, "conversations": turns, **picture})
            put(slot.file(root, part), records)
    return root


def make_scope(root: Path) -> Path:
    """Fed-Scope's sources and tests in their authors' forms."""
    solved = [{"question": f"train {n}?", "answer": f"{n}\n#### {n}"} for n in range(40)]
    put(root / "gsm8k" / "train.jsonl", solved)
    asked = [{"question": f"test {n}?", "answer": f"{n}\n#### {n}"} for n in range(8)]
    put(root / "gsm8k" / "test.jsonl", asked)
    dolly = [
        {"instruction": f"{kind} {n}", "context": "", "response": "yes", "category": kind}
        for kind in CATEGORIES.values()
        for n in range(5)
    ]
    put(root / "dolly" / "databricks-dolly-15k.jsonl", dolly)
    rosetta = [
        {"instruction": f"task {n}", "input": name, "output": "" if n == 9 else "code"}
        for name in ("Java", "C", "PHP", "C#", "C++", "Python", "Go", "Pascal", "Scala")
        for n in range(10)
    ]
    put(root / "rosetta" / "rosetta_alpaca.json", rosetta)
    for subject in ("law", "maths", "music", "physics"):
        for part in ("dev", "test"):
            row = f'{subject} 0?,one,"two, or more",three,four,B\n'
            put(root / "mmlu" / "data" / part / f"{subject}_{part}.csv", row)
    tasks = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def f{n}():\n",
            "entry_point": f"f{n}",
            "canonical_solution": f"    return {n}\n",
            "test": f"def check(f):\n    assert f() == {n}\n",
        }
        for n in range(4)
    ]
    (root / "humaneval").mkdir()
    with gzip.open(root / "humaneval" / "HumanEval.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(task) + "\n" for task in tasks)
    return root
