"""The script that makes a federation of real pictures: run as a process, at small size, on the real sources."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_platform.data import Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.rng import numpy_rng

pytestmark = pytest.mark.realdata

TRAIN, TEST, PUBLIC = 24, 12, 40
Main = Callable[[list[str]], int]


def words(data: Path, cifar: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--train", str(TRAIN), "--test", str(TEST), "--public", str(PUBLIC)]
    return ["--data", str(data), "--cifar", str(cifar), "--out", str(out), *sizes, *more]


@pytest.fixture(scope="module")
def federation(checkout: Path, realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures") / "federation"
    script = checkout / "tools" / "make_picture_federation.py"
    command = [sys.executable, str(script), *words(realdata / "images", realdata / "cifar100", out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


@pytest.fixture
def main(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """The script's own entry, in this process."""
    monkeypatch.syspath_prepend(str(checkout / "tools"))
    entry: Main = import_module("make_picture_federation").main
    return entry


def parts(task: TaskData) -> dict[str, list[Sample]]:
    return {"train": [*task.train, *task.validation], "test": list(task.test)}


def pixels(samples: list[Sample]) -> set[str]:
    return {hashlib.sha256(p.load().tobytes()).hexdigest() for sample in samples for p in sample.pictures}


def test_it_loads_and_is_what_it_says(federation: Path) -> None:
    benchmark = pfl_make_benchmark(str(federation), {})
    assert benchmark is not None
    assert len(benchmark.clients) == 8
    assert Counter(client.backbone for client in benchmark.clients) == dict.fromkeys(
        ["tiny-llava-llama-s", "tiny-llava-llama-m", "tiny-llava-qwen-s", "tiny-llava-qwen-m"], 2
    )
    tasks = [task for client in benchmark.clients for task in client.tasks]
    assert [len(client.tasks) for client in benchmark.clients] == [4] * 8
    assert {len(parts(task)["train"]) for task in tasks} == {TRAIN}
    assert {len(task.test) for task in tasks} == {TEST}
    assert {task.kind for task in tasks} == {"multi-choice", "open-ended"}
    assert {len(sample.pictures) for task in tasks for sample in task.test} == {1, 2, 3}
    assert len(benchmark.public(None, 10_000, 0)) == PUBLIC
    for task in tasks:
        assert all(1 < len(sample.options) < 5 for sample in task.test) == (task.kind == "multi-choice")
    assert {max(sample.pictures[0].load().size) for task in tasks for sample in task.test} == {28, 32, 64}


def test_right_answers_stand_everywhere_equally_often(federation: Path) -> None:
    benchmark = pfl_make_benchmark(str(federation), {})
    assert benchmark is not None
    for client in benchmark.clients:
        for task in client.tasks:
            for samples in parts(task).values():
                places = Counter(
                    (s.options.index(s.gold[0]) if s.gold[0] in s.options else "ABCD".index(s.gold[0]))
                    for s in samples
                    if s.options
                )
                if places:
                    assert max(places.values()) - min(places.values()) <= 1, task.name
                    assert len(places) == len(samples[0].options)


def test_no_picture_is_shared(federation: Path) -> None:
    benchmark = pfl_make_benchmark(str(federation), {})
    assert benchmark is not None
    owners = {
        (client.client_id, split): pixels([s for task in client.tasks for s in parts(task)[split]])
        for client in benchmark.clients
        for split in ("train", "test")
    }
    owners["public", ""] = pixels(list(benchmark.public(None, 10_000, 0)))
    assert sum(len(seen) for seen in owners.values()) == len(set().union(*owners.values()))


def test_the_same_seed_gives_the_same_bytes(federation: Path, main: Main, realdata: Path, tmp_path: Path) -> None:
    assert main(words(realdata / "images", realdata / "cifar100", tmp_path / "again")) == 0
    first, again = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (federation, tmp_path / "again")
    )
    assert len(first) > 1000
    assert first == again


def test_cifar_10_and_another_seed(federation: Path, main: Main, realdata: Path, tmp_path: Path) -> None:
    out = tmp_path / "ten"
    assert main(words(realdata / "images", realdata / "drake_hflb", out, "--seed", "1")) == 0
    made = pfl_make_benchmark(str(out), {})
    assert made is not None
    assert {option for sample in made.clients[7].tasks[0].train for option in sample.options} >= {"frog", "ship"}
    same = Path("dataset/MNIST/train/dataset-0.json")
    assert (out / same).read_bytes() != (federation / same).read_bytes()


def test_questions_do_not_repeat(main: Main) -> None:
    script, questions = (sys.modules[name] for name in ("make_picture_federation", "picture_federation.questions"))
    deck = questions.Deck(numpy_rng(0), {"fish": {"1.png": "fish", "2.png": "fish"}, "tree": {"3.png": "tree"}})
    made = script.records(deck, [questions.named_kind("thing")], ["fish", "tree", "fish"], "x")
    assert sorted(record["image"][0] for record in made) == ["1.png", "2.png", "3.png"]
    with pytest.raises(UserError, match="too few pictures of 'tree' for 2 different questions"):
        script.records(deck, [questions.named_kind("thing")], ["tree", "tree"], "x")


def test_bad_input(main: Main, realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, cifar, new, taken = realdata / "images", realdata / "cifar100", tmp_path / "new", tmp_path / "taken"
    taken.mkdir()
    (taken / "x").touch()
    for given, message in (
        (words(images, cifar, taken), "is there already and not an empty folder"),
        (words(images, tmp_path / "none", new), "has neither 'cifar-100-binary' nor"),
        (words(tmp_path / "none", cifar, new), "train-labels-idx1-ubyte.gz cannot be read"),
        (words(images, cifar, new, "--skew", "2"), "--skew lies between 0 and 1"),
    ):
        assert main(given) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]  # nothing half-written
