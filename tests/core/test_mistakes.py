"""What was answered wrongly, read back with its question and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pfl_benchmarks.drake_synth.plugin import Config, build
from pfl_platform.cli import main
from pfl_platform.data import FixedBenchmark
from pfl_platform.errors import UserError
from pfl_platform.report.mistakes import mistakes, page


@pytest.fixture(scope="module")
def benchmark() -> FixedBenchmark:
    built = build(Config(num_clients=2, train_size=4, validation_size=2, test_size=3))
    assert isinstance(built, FixedBenchmark)
    return built


@pytest.fixture
def run(tmp_path: Path, benchmark: FixedBenchmark) -> Path:
    """Predictions of two clients on their own first task and on the other's: the first item right, the others not."""
    with (tmp_path / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for client in benchmark.clients:
            for owner in benchmark.clients:
                for place, sample in enumerate(owner.tasks[0].test):
                    cell = f"{owner.client_id}:{owner.tasks[0].name}"
                    said = sample.gold[0] if place == 0 else "<b>no</b>"
                    row = {"client": client.client_id, "cell": cell, "id": sample.id, "text": said}
                    file.write(json.dumps({**row, "score": float(place == 0)}) + "\n")
    return tmp_path


def test_mistakes_are_those_below_full_score_on_own_tasks(run: Path, benchmark: FixedBenchmark) -> None:
    first, second = benchmark.clients
    found = list(mistakes(run, benchmark, "test"))
    expected = [(c.client_id, c.tasks[0].test[k].id) for c in (first, second) for k in (1, 2)]
    assert [(item.client, item.sample.id) for item in found] == expected
    assert found[0].row()["wanted"] == list(first.tasks[0].test[1].gold)
    assert [item.client for item in mistakes(run, benchmark, "test", client="client-1")] == ["client-1"] * 2
    on_one = list(mistakes(run, benchmark, "test", task=first.tasks[0].name))
    assert [item.client for item in on_one] == ["client-0", "client-0", "client-1", "client-1"]


def test_the_page_holds_the_pictures_and_escapes_what_was_said(run: Path, benchmark: FixedBenchmark) -> None:
    found = list(mistakes(run, benchmark, "test", client="client-0"))
    written = page(found, "Two & more")
    assert "<b>no</b>" not in written
    assert "&lt;b&gt;no&lt;/b&gt;" in written
    assert "<title>Two &amp; more</title>" in written
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', written)
    shown = [picture for item in found for picture in item.sample.pictures]
    assert len(pictures) == len(shown) > 0
    enlarged = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    original = shown[0].load()
    assert enlarged.size == (original.width * 4, original.height * 4)
    assert enlarged.getpixel((65, 65)) == original.getpixel((16, 16))


def test_what_cannot_be_read_back_is_said(run: Path, benchmark: FixedBenchmark) -> None:
    with pytest.raises(UserError, match=r"The run has no client 'client-2'\. Did you mean"):
        list(mistakes(run, benchmark, "test", client="client-2"))
    with pytest.raises(UserError, match=r"The run has no task 'sam-0'\. Did you mean 'same-0'\?"):
        list(mistakes(run, benchmark, "test", task="sam-0"))
    smaller = build(Config(num_clients=2, train_size=4, validation_size=2, test_size=2))
    with pytest.raises(UserError, match=r"Line 3 of .*predictions\.jsonl is about '.*', which the benchmark does not"):
        list(mistakes(run, smaller, "test"))
    with (run / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"client": "client-0", "cell"')
    with pytest.raises(UserError, match=r"Line 13 of .*predictions\.jsonl is no prediction; put back the file"):
        list(mistakes(run, benchmark, "test"))
    (run / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match=r"The run has no predictions\.jsonl; it is written when a run ends\."):
        list(mistakes(run, benchmark, "test"))


def test_the_commands_on_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One small run: Others and Unseen are filled in afterwards, and the mistakes are read."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    settings = {
        "rounds": 1, "local_steps": 1, "benchmark.num_clients": 2, "benchmark.backbones": "tiny-llava-qwen-s",
        "benchmark.test_size": 2, "evaluation.others": "false", "evaluation.max_new_tokens": 2, "engine.threads": 1,
    }  # fmt: skip
    command("run", "-p", "sft", "--out", "one", "-q", *(f"--set={key}={value}" for key, value in settings.items()))
    before = json.loads(Path("one/results.json").read_bytes())
    assert before["summary"]["others"]["last"]["mean"] is None
    filled = json.loads(command("evaluate", "one", "--others", "--items", "1", "--json"))
    assert filled["summary"]["others"]["last"]["count"] == 2
    assert "Unseen" in command("evaluate", "one", "--unseen", "--items", "1", "--quiet")
    assert main(["evaluate", "one"]) == 2
    assert "With their pictures: one/errors.html" in command("show", "one", "--errors", "--limit", "3")
    assert Path("one/errors.html").read_text(encoding="utf-8").count("<article>") == 3
    assert len(json.loads(command("show", "one", "--errors", "--limit", "2", "--json"))) == 2
    assert main(["show", "one", "--errors", "--limit", "0"]) == 2
    about = json.loads(Path("one/run.json").read_bytes())
    about["pins"]["benchmark"] = "other data"
    Path("one/run.json").write_text(json.dumps(about))
    assert main(["show", "one", "--errors"]) == 2
    assert "The data are not those that the run one began with" in capsys.readouterr().err
