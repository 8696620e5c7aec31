"""A large federation is opened from its index: the same samples, without parsing, until a file has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfl_benchmarks.folder import index, loading
from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_platform.errors import UserError
from pfl_platform.federation.rows import _longest, _rows

SHAPE = ("--clients", "2", "--tasks", "2", "--train", "12", "--test", "5", "--pictures", "90", "--distinct", "40")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    out = tmp_path_factory.mktemp("made") / "federation"
    tool = checkout / "tools" / "make_large_federation.py"
    subprocess.run([sys.executable, tool, out, *SHAPE], check=True, timeout=120)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and an empty cache; 20 samples are large."""
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LARGE", 20)
    return Path(shutil.copytree(made, tmp_path / "federation"))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The record files that are parsed."""
    seen: list[Path] = []
    before = loading.read_records

    def read(path: Path, *rest: Any, **options: Any) -> Any:
        seen.append(path)
        return before(path, *rest, **options)

    monkeypatch.setattr(loading, "read_records", read)
    return seen


def opened(folder: Path, **options: Any) -> FolderBenchmark:
    found = pfl_make_benchmark("folder", {"path": str(folder), **options})
    assert isinstance(found, FolderBenchmark)
    return found


def content(benchmark: FolderBenchmark) -> list[Any]:
    """Everything that a run reads."""
    return [
        (
            client.client_id,
            client.backbone,
            task.name,
            task.kind,
            task.metric,
            task.group,
            name,
            list(getattr(task, name)),
        )
        for client in benchmark.clients
        for task in client.tasks
        for name in ("train", "validation", "test")
    ] + [benchmark.name, benchmark.digest(), benchmark.notes, dict(benchmark.defaults)]


def test_an_index_holds_what_was_read(folder: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index, "LARGE", 10**9)
        plain = opened(folder)
    assert isinstance(plain.clients[0].tasks[0].train, tuple)
    assert len(parsed) == 8
    first = opened(folder)
    assert len(parsed) == 16
    again = opened(folder)
    assert len(parsed) == 16
    assert all(isinstance(found.clients[0].tasks[0].train, index.Indexed) for found in (first, again))
    assert content(first) == content(again) == content(plain)
    assert [task.kind for task in again.clients[0].tasks] == ["multi-choice"] * 2
    assert all(sample.options for sample in again.clients[1].tasks[1].test)
    opened(folder, validation_fraction=0.2)
    assert len(parsed) == 24


def change_record(folder: Path) -> None:
    file = folder / "dataset" / "Made0" / "train" / "dataset-0.json"
    file.write_text(file.read_text().replace("Your answer is", "Your choice is", 1))


def change_scenario(folder: Path) -> None:
    file = folder / "scenario.json"
    file.write_text(json.dumps(list(reversed(json.loads(file.read_text())))))


def change_picture(folder: Path) -> None:
    file = folder / "dataset" / "pictures" / "0000" / "0000050.png"
    file.write_bytes((folder / "dataset" / "pictures" / "0000" / "0000001.png").read_bytes())


def cut_index(folder: Path) -> None:
    for file in (folder.parent / "cache").rglob("*.arrow"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoil_index(folder: Path) -> None:
    for file in (folder.parent / "cache").rglob("about.json"):
        file.write_text('{"name": "nothing else"}')


@pytest.mark.parametrize("change", [change_record, change_scenario, change_picture, cut_index, spoil_index])
def test_whatever_has_changed_is_read_anew(
    folder: Path, parsed: list[Path], change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder)
    change(folder)
    parsed.clear()
    found = opened(folder)
    assert len(parsed) == 8
    monkeypatch.setattr(index, "LARGE", 10**9)
    shutil.rmtree(folder.parent / "cache")
    assert content(found) == content(opened(folder))


def test_what_breaks_later_is_said_as_ever(folder: Path) -> None:
    opened(folder)
    picture = folder / "dataset" / "pictures" / "0000" / "0000003.png"
    picture.unlink()
    picture.write_bytes(b"no picture at all")
    with pytest.raises(
        UserError, match=r"dataset-0\.json, record \d+: the picture .*0000003\.png is broken or no picture"
    ):
        opened(folder)
    picture.unlink()
    with pytest.raises(UserError, match=r"0000003\.png does not exist"):
        opened(folder)
    record = folder / "dataset" / "Made1" / "test" / "dataset-0.json"
    record.write_text("[{]")
    with pytest.raises(UserError, match=r"Made1.*is not valid JSON"):
        opened(folder)


def test_the_longest_rows_are_among_those_that_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfl_platform.federation.rows.MOST_PROMPTS", 3)
    task = opened(folder).clients[0].tasks[0]
    plain = replace(task, train=tuple(task.train))
    for answers in (True, False):
        few, all_of_them = (_longest(list(_rows("a", one, ("train",))), 3, answers) for one in (task, plain))
        assert {row.sample.id for row in few} == {row.sample.id for row in all_of_them}


def test_a_cache_that_cannot_be_written_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(opened(folder))
    monkeypatch.setenv("PFL_CACHE", str(folder / "a file"))
    (folder / "a file").touch()
    assert content(opened(folder)) == whole
