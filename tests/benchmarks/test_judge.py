"""The judge: prompt and rating, recorded verdicts, a server that is made here, and a run that says who rated."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from judge_support import Server, serving
from pfl_benchmarks.judge import prompt
from pfl_benchmarks.judge.plugin import pfl_make_metric
from pfl_benchmarks.judge.rating import Rating
from pfl_benchmarks.judge.verdicts import key_of
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import RunStopped, UserError

SAMPLE = Sample("aya/0", (Turn("Capital of Peru?", "Lima"),))


def metric(**options: Any) -> Rating:
    made = pfl_make_metric("rating", {"wait": 0.0, **options})
    assert isinstance(made, Rating)
    return made


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def test_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(prompt).failed == 0


def test_the_stub_says_that_nobody_judged() -> None:
    stub = metric()
    assert stub.score("Lima", SAMPLE) == 1.0
    assert stub.score("Quito", SAMPLE) == pytest.approx(0.1)
    assert stub.rate("Lima it is", SAMPLE) == pytest.approx(1 + 9 * 0.5)  # precision 1/3, recall 1
    assert "No judge has read an answer" in stub.notes[0]


def test_a_server_is_asked_once_and_its_verdict_kept(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", "secret-word")
    file = tmp_path / "made" / "verdicts.jsonl"
    options = {"judge": "http", "url": server.url, "verdicts": file, "model": "m", "key_variable": "MY_KEY"}
    judge = metric(**options, price_in=1.0, price_out=10.0)
    assert [judge.rate("Lima", SAMPLE) for _ in range(3)] == [9.0] * 3
    (asked,) = server.asked
    assert asked["model"] == "m"
    assert asked["temperature"] == 0.2
    text = asked["messages"][0]["content"]
    assert text.index("[Question]\nCapital of Peru?") < text.index("Answer]\nLima") < text.index("[Reference]\nLima")
    assert server.headers[0]["Authorization"] == "Bearer secret-word"
    assert "1 verdicts of 100 tokens read and 10 written for 0.0002; 1 of them" in judge.notes[0]
    assert "secret-word" not in file.read_text(encoding="utf-8")
    again = metric(**options)
    assert again.rate("Lima", SAMPLE) == 9.0
    assert len(server.asked) == 1
    replayed = metric(judge="replay", verdicts=file, model="m")
    assert replayed.score("Lima", SAMPLE) == 0.9
    assert "recorded before" in replayed.notes[0]
    with pytest.raises(RunStopped, match="holds no verdict of 'm' on this answer to 'aya/0'"):
        replayed.rate("Quito", SAMPLE)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserError, match="The environment variable MY_KEY holds no key"):
        metric(**options)


@pytest.mark.parametrize(
    ("says", "calls", "message"),
    [
        ([503, "no rating", {"odd": 1}, "At last: [[4]]"], 4, ""),
        ([500], 4, "it answers 500"),
        (["well"], 4, r"its verdict holds no rating \[\[n\]\]"),
        ([401], 1, "it answers 401"),
    ],
)
def test_attempts_are_repeated_and_end(
    server: Server, tmp_path: Path, says: list[Any], calls: int, message: str
) -> None:
    server.says = says
    judge = metric(judge="http", url=server.url, verdicts=tmp_path / "v.jsonl")
    if message:
        with pytest.raises(RunStopped, match=rf"gave no rating for the answer to 'aya/0': {message}.*resume the run"):
            judge.rate("Lima", SAMPLE)
        assert not (tmp_path / "v.jsonl").exists()
    else:
        assert judge.rate("Lima", SAMPLE) == 4.0
        assert "of 200 tokens read and 20 written" in judge.notes[0]  # the attempt without a rating included
    assert len(server.asked) == calls


def test_a_server_that_is_away_is_found_before_the_run_and_a_slow_one_is_left(tmp_path: Path) -> None:
    gone = Server()
    gone.server.server_close()
    with pytest.raises(UserError, match=rf"The judge at {gone.url} does not answer: .*refused"):
        metric(judge="http", url=gone.url, verdicts=tmp_path / "v.jsonl")
    slow = Server()  # takes connections, and nobody serves them
    try:
        with pytest.raises(UserError, match="does not answer: .*timed out"):
            metric(judge="http", url=slow.url, verdicts=tmp_path / "v.jsonl", timeout=0.1)
    finally:
        slow.server.server_close()


def _line(**fields: Any) -> str:
    return json.dumps({"key": key_of("m", "p"), "verdict": "[[5]]", **fields}) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: _line(verdict="very good"), r"line 1: the verdict holds no rating"),
        (lambda: _line(verdict="[[12]]"), "holds no rating"),
        (lambda: _line() + _line(verdict=3), "line 2: 'verdict' must be a text and is a number"),
        (lambda: _line(key=None), "'key' must be a text and is null"),
        (lambda: _line(tokens_in=-1), "'tokens_in' and 'tokens_out' are whole numbers"),
        (lambda: "{", "line 1 is not valid JSON"),
    ],
)
def test_bad_files_of_verdicts_are_refused(tmp_path: Path, content: Callable[[], str], message: str) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text(content(), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        metric(judge="replay", verdicts=file)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        metric(judge="replay", verdicts=tmp_path / "none.jsonl")
    (tmp_path / "v.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"v\.json must end in \.jsonl"):
        metric(judge="replay", verdicts=tmp_path / "v.json")
    template = tmp_path / "t.txt"
    template.write_text("{question} {answer}", encoding="utf-8")
    with pytest.raises(UserError, match="has no place {reference}"):
        metric(template=template)
    for bad in ({"judge": "http"}, {"judge": "replay"}, {"url": "file:///etc/passwd"}, {"retries": -1}):
        with pytest.raises(ValidationError):
            metric(**bad)
