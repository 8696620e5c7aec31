"""Stand-ins for text federations: every task of the published clients, from texts that are written here."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from pfl_benchmarks.suites.plugin import pfl_make_benchmark
from pfl_platform.data import Benchmark
from text_support import make_flan, put

LANGUAGES = ("ar", "de", "el", "en", "zh")


@pytest.fixture
def tool(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(checkout / "tools"))
    return importlib.import_module("make_text_federations")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight articles of six questions in five languages, and 300 instructions."""
    root = tmp_path / "data"
    for language in LANGUAGES:
        articles = []
        for article in range(8):
            context = "x" * 50 + f"{language}{article}" + "y" * 50
            answer = {"text": f"{language}{article}", "answer_start": 50}
            asked = [{"question": f"{language} {article} {number}?", "answers": [answer]} for number in range(6)]
            articles.append({"title": str(article), "paragraphs": [{"context": context, "qas": asked}]})
        put(root / "fed_aya" / "xquad" / f"xquad.{language}.json", {"data": articles})
    dolly = [{"instruction": f"dolly {n}", "context": "", "response": "d", "category": "open_qa"} for n in range(150)]
    put(root / "fed_scope" / "dolly" / "databricks-dolly-15k.jsonl", dolly)
    alpaca = [{"instruction": f"alpaca {n}", "input": "", "output": "a"} for n in range(150)]
    put(root / "fed_scope" / "alpaca" / "alpaca_data.json", alpaca)
    return root


def load(name: str, root: Path, **options: object) -> Benchmark:
    made = pfl_make_benchmark(name, {"root": str(root), "models": "tiny", "validation_fraction": 0.0, **options})
    assert made is not None
    return made


def test_topics_and_languages_are_tasks_of_eight_clients(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tool.main(["--data", str(data), "--form", "fedaya", "--out", str(out), "--longest", "20"])
    clients = load("fedaya", out).clients
    for number, client in enumerate(clients):
        for place, task in enumerate(client.tasks):
            language = LANGUAGES[(4 * number + place) % 5]
            assert (len(task.train), len(task.test)) == (5, 1)
            for sample in (*task.train, *task.test):
                context, question = sample.turns[0].human.split("\n\n")
                assert question.startswith(f"{language} {number} ")
                assert sample.turns[0].answer in context
                assert len(context) == 20
    with pytest.raises(SystemExit, match="holds fewer than 4 files"):
        tool.main(["--data", str(tmp_path), "--form", "fedaya", "--out", str(out)])


def test_fifty_two_clients_have_texts_of_their_own(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        make_flan(tmp_path / "flan" / "feddpa" / f"dataset{number}", f"flan-feddpa{number}")
    out = tmp_path / "out"
    tool.main(["--data", str(data), "--form", "fedllm-large", "--out", str(out)])
    benchmark = load("fedllm-large", out)
    assert len(benchmark.clients) == 52
    chats = [client for client in benchmark.clients if client.tasks[0].name.startswith("FedchatbotIT")]
    spoken = [sample.turns[0].human for client in chats for task in client.tasks for sample in task.train]
    assert len(chats) == 20
    assert len(set(spoken)) == len(spoken) > 200
