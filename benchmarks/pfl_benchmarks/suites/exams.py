"""The three tests of Fed-Scope from their authors' files: MMLU, GSM8K and HumanEval, as samples."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pfl_benchmarks.suites.options import Exam
from pfl_benchmarks.text.files import records, text_of
from pfl_platform.data import Kind, Sample, Turn
from pfl_platform.errors import UserError

LETTERS = "ABCD"
SCORED: Mapping[Exam, tuple[Kind, str]] = {
    "mmlu": ("multi-choice", "choice"),
    "gsm8k": ("open-ended", "gsm8k"),
    "humaneval": ("open-ended", "humaneval"),
}
"""Kind and metric of each test."""
FILES: Mapping[Exam, str] = {
    "mmlu": "mmlu/data/test",
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
}
OFFICIAL: Mapping[Exam, int] = {"mmlu": 14_042, "gsm8k": 1_319, "humaneval": 164}
"""Questions of each whole test."""


def read_exam(exam: Exam, root: Path, shots: int = 0) -> list[Sample]:
    """All questions of a test, in the order of its files."""
    readers: Mapping[Exam, Callable[[Path, int], list[Sample]]] = {
        "mmlu": read_mmlu,
        "gsm8k": lambda folder, many: read_gsm8k(folder, "test", many),
        "humaneval": lambda folder, _: read_humaneval(folder),
    }
    return readers[exam](root, shots)


def read_gsm8k(root: Path, split: str, shots: int = 0) -> list[Sample]:
    """Problems with their worked solutions, which end in `#### number`; `shots` solved ones of the train file before
    each."""
    file = root / "gsm8k" / f"{split}.jsonl"
    before = ""
    if shots:
        solved = read_gsm8k(root, "train")[:shots]
        before = "".join(f"{sample.turns[0].human}\n{sample.turns[0].answer}\n\n" for sample in solved)
    samples = []
    for index, (where, record) in enumerate(records(file)):
        question, answer = text_of(record, "question", where), text_of(record, "answer", where)
        if "####" not in answer:
            raise UserError(f"{where}: the answer does not end in '#### number'.")
        samples.append(Sample(f"gsm8k/{split}/{index}", (Turn(before + question, answer),)))
    return samples


def read_mmlu(root: Path, shots: int = 0) -> list[Sample]:
    """Questions of all subjects with four options each; `shots` solved ones of the subject before each."""
    folder = root / "mmlu" / "data"
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        raise UserError(f"{folder / 'test'} holds no *_test.csv.")
    samples = []
    for file in files:
        subject = file.name.removesuffix("_test.csv")
        before = ""
        if shots:
            solved = _rows(folder / "dev" / f"{subject}_dev.csv")[:shots]
            before = "".join(f"{_asked(row)} {row[5]}\n\n" for row in solved)
        for index, row in enumerate(_rows(file)):
            turn = Turn(before + _asked(row), row[5])
            samples.append(Sample(f"mmlu/{subject}/{index}", (turn,), options=tuple(row[1:5])))
    return samples


def _rows(file: Path) -> list[list[str]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 6 or row[5] not in LETTERS or not row[5]:
            raise UserError(f"{file}, row {number}: a question, four options and a letter A to D are needed.")
    return rows


def _asked(row: Sequence[str]) -> str:
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0]}\n{options}\nAnswer:"


def read_humaneval(root: Path) -> list[Sample]:
    """Functions to complete. Accepted is what tests them (see the metric `humaneval`), learned their solution."""
    file = root / FILES["humaneval"]
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            read = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    samples = []
    for number, record in enumerate(read, start=1):
        fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in fields):
            raise UserError(f"{file}, line {number}: the texts {', '.join(fields)} are needed.")
        tests = f"{record['test']}\ncheck({record['entry_point']})\n"
        turn = Turn(record["prompt"], record["canonical_solution"])
        samples.append(Sample(record["task_id"], (turn,), references=(tests,)))
    return samples
