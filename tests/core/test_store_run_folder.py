"""The run folder: made whole or not at all, one round per file, one process at a time, no rubbish."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.tasks import Outcome
from pfl_platform.store import atomic
from pfl_platform.store.pins import pins_of
from pfl_platform.store.run_folder import RunFolder, safe_name

PINS = {"versions": {"torch": "2.13.0"}, "threads": 2, "benchmark": "b" * 64, "backbones": {"tiny": "c" * 64}}


def config(**changes: Any) -> RunConfig:
    part = Choice(name="x", options={"rank": 4, "keys": ["a", "b"]})
    return RunConfig(method="m", benchmark=part, adapter=part, objective=part, aggregator=part, **changes)


def new_run(path: Path) -> RunFolder:
    return RunFolder.create(path, config(), PINS)


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- made


def test_a_new_run_holds_its_configuration_and_pins(tmp_path: Path) -> None:
    chosen = config(seed=3, backbones={"*": "tiny", "é": "big"}, backbone_options={"device": "cpu"})
    RunFolder.create(tmp_path / "some" / "where" / "run", chosen, PINS)
    run = RunFolder.open(tmp_path / "some" / "where" / "run")
    assert run.config == chosen
    assert run.pins == PINS
    assert run.created.endswith("+00:00")
    assert (run.rounds(), run.last_round(), run.read_prepare(), run.read_results()) == ([], None, None, None)
    assert entries(tmp_path) == [
        "some",
        "some/where",
        "some/where/run",
        *(f"some/where/run/{name}" for name in (".lock", "config.yaml", "rounds", "run.json")),
    ]


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path: Path) -> None:
    """It may be a mount point, or where the user's shell stands."""
    before = tmp_path.stat().st_ino
    new_run(tmp_path)
    assert tmp_path.stat().st_ino == before
    assert RunFolder.open(tmp_path).config == config()


def test_a_used_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("mine")
    before = entries(tmp_path)
    with pytest.raises(UserError, match=r"already holds a run; .*pfl-platform resume"):
        new_run(run.path)
    with pytest.raises(UserError, match=r"not empty \(it holds 'notes.txt'\)"):
        new_run(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        new_run(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        new_run(tmp_path / "notes.txt" / "a" / "run")
    assert entries(tmp_path) == before


@pytest.mark.parametrize("given", ["new", "empty"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_that_cannot_be_made_leaves_nothing(
    call: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "b" / "run"
    if given == "empty":
        path.mkdir(parents=True)
    before = entries(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, call, full)
    with pytest.raises(UserError, match=f"{path} cannot be made: No space left on device") as caught:
        new_run(path)
    assert caught.value.exit_code == 2
    assert entries(tmp_path) == before


def test_of_two_that_find_a_folder_empty_one_fills_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()  # the other one was quicker by a moment
    from pfl_platform.store import run_folder

    with pytest.raises(FileExistsError):
        run_folder._fill_given(tmp_path, config(), PINS)
    assert entries(tmp_path) == [".lock"]


# --- opened


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run\.json"):
        RunFolder.open(tmp_path)
    run = new_run(tmp_path / "run")
    (run.path / "run.json").write_text('{"format": 99, "pins": {}}')
    with pytest.raises(UserError, match=r"has the format 99"):
        RunFolder.open(run.path)
    (run.path / "run.json").write_text('{"format": 1,\n "pins"')
    with pytest.raises(UserError, match=r"run\.json is not JSON \(line 2, column"):
        RunFolder.open(run.path)
    (run.path / "run.json").write_text('{"format": 1}')
    (run.path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("text", ["a: [", "method: 3\n", "", "!!python/object:os.system {}"])
def test_a_broken_configuration_is_named(text: str, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml (cannot be read|was changed)"):
        _ = RunFolder.open(run.path).config


def test_differences_from_the_beginning_are_sentences(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert run.check_pins(PINS) == []
    now = {"versions": {"torch": "2.14.0"}, "threads": 4, "benchmark": "x", "backbones": {"tiny": "y"}, "dtype": "f"}
    assert run.check_pins(now) == [
        "The weights of the backbone 'tiny' are not those that the run began with.",
        "The benchmark's data are not those that the run began with.",
        "The run began with nothing for 'dtype'; here it is f.",
        "The run began with 2 torch threads; here there are 4.",
        "The run began with torch 2.13.0; here it is 2.14.0.",
    ]


def test_pins_survive_the_way_to_the_disk_and_back(tmp_path: Path) -> None:
    pins = pins_of(threads=2, benchmark="b", backbones={"z": "1", "a": "2"}, dtype="float32", sizes=(1, 2))
    assert pins["versions"]["torch"] == torch.__version__
    run = RunFolder.create(tmp_path / "run", config(), pins)
    assert run.check_pins(pins) == []
    assert RunFolder.open(run.path).check_pins(pins) == []


# --- rounds


def test_rounds_come_back_in_order(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for index in range(12):
        run.commit_round(index, {"states": {"é": "a" * 64}, "loss": index / 3})
    again = RunFolder.open(run.path)
    assert [record["round_index"] for record in again.rounds()] == list(range(12))
    assert again.last_round() == {"round_index": 11, "states": {"é": "a" * 64}, "loss": 11 / 3}


def test_only_the_next_round_can_be_committed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.commit_round(0, {})
    for index in (0, 2):
        with pytest.raises(ValueError, match=f"round {index} cannot be committed: the next one is 1"):
            run.commit_round(index, {})


def test_more_rounds_than_four_digits(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for index in range(10_001):
        (run.path / "rounds" / f"{index:04d}.json").write_text(f'{{"round_index": {index}}}')
    last = run.last_round()
    assert last is not None
    assert last["round_index"] == 10_000


def test_what_is_no_round_is_ignored_and_a_broken_one_is_not(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for index in range(3):
        run.commit_round(index, {})
    rounds = run.path / "rounds"
    (rounds / ".0003.json.17-0.tmp").write_text('{"round')
    (rounds / "notes.txt").write_text("mine")
    assert len(run.rounds()) == 3
    (rounds / "0002.json").write_text('{"round_index": 2,')
    with pytest.raises(UserError, match=r"0002\.json is not JSON \(line 1, column 19"):
        run.rounds()
    (rounds / "0002.json").write_text('{"round_index": 1}')
    with pytest.raises(UserError, match=r"0002\.json holds round 1 instead of 2; put back the right one"):
        run.last_round()
    (rounds / "0002.json").write_text("[]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        run.last_round()
    (rounds / "0001.json").unlink()
    with pytest.raises(UserError, match=r"lacks .*0001\.json although a later round is there"):
        run.rounds()


def test_a_full_disk_loses_no_earlier_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path / "run")
    run.commit_round(0, {"loss": 1.0})
    run.store.cache("d" * 64, Outcome("client", None, None, 1, {}))
    before = entries(run.path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", full)
        for action in (
            lambda: run.commit_round(1, {"loss": 2.0}),
            lambda: run.write_results({}),
            lambda: run.write_prepare({}),
            lambda: run.write_predictions([{"text": "x"}]),
        ):
            with pytest.raises(RunStopped, match="is full; free some space"):
                action()
    assert entries(run.path) == before
    assert run.rounds() == [{"round_index": 0, "loss": 1.0}]
    assert run.store.cached("d" * 64) is not None
    run.commit_round(1, {"loss": 2.0})
    assert len(run.rounds()) == 2


def test_the_end_of_a_round_or_of_preparation_forgets_its_outcomes(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for end in (lambda: run.write_prepare({"frozen": {}}), lambda: run.commit_round(0, {})):
        run.store.cache("d" * 64, Outcome("client", None, None, 1, {}))
        assert run.store.cached("d" * 64) is not None
        end()
        assert run.store.cached("d" * 64) is None
    assert run.read_prepare() == {"frozen": {}}


def test_predictions_are_lines(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.write_predictions({"text": text} for text in ("a\nb", "é"))
    lines = (run.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "a\nb"}, {"text": "é"}]


# --- adapters


@pytest.mark.parametrize("client", ["a", "a/b", "../a", "..", ".", "a%2Fb", "A b", ".hidden", "é", "a\nb", "~"])
def test_client_ids_stay_in_their_folder_and_apart(client: str, tmp_path: Path) -> None:
    from urllib.parse import unquote

    run = new_run(tmp_path / "run")
    with run.exporting(client) as folder:
        (folder / "adapter_config.json").write_text(client)
    target = run.adapter_folder(client)
    assert target.parent == run.path / "adapters"
    assert not target.name.startswith(".")
    assert unquote(target.name) == client  # so different ids have different names
    assert (target / "adapter_config.json").read_text() == client
    assert len(list((run.path / "adapters").iterdir())) == 1


@pytest.mark.parametrize(
    ("client", "why"), [("", "must not be empty"), ("x" * 201, "too long"), ("é" * 50, "too long")]
)
def test_impossible_client_ids_are_sentences(client: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        safe_name(client)


def test_an_export_replaces_the_earlier_one_only_when_it_ends_well(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")

    def export(text: str, error: Exception | None = None) -> None:
        with run.exporting("client") as folder:
            assert list(folder.iterdir()) == []
            (folder / "adapter_model.safetensors").write_text(text)
            if error is not None:
                raise error

    export("first")
    with pytest.raises(ZeroDivisionError):
        export("second", ZeroDivisionError())
    # peft saves through the library's writer, which knows the system's error only by its words
    with pytest.raises(RunStopped, match="is full"):
        export("second", SafetensorError("Error: I/O error: No space left on device (os error 28)"))
    assert (run.adapter_folder("client") / "adapter_model.safetensors").read_text() == "first"
    export("third")
    assert (run.adapter_folder("client") / "adapter_model.safetensors").read_text() == "third"
    assert [path.name for path in (run.path / "adapters").iterdir()] == ["client"]


# --- one process at a time

HOLD = """
import sys, time
from pathlib import Path
from pfl_platform.store.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_turned_away_until_the_first_has_died(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"Another process \(process {first.pid} on .*\) is working in"),
            run.lock(),
        ):
            pass
        first.send_signal(signal.SIGKILL)
    with run.lock():
        assert f"process {os.getpid()} on" in (run.path / ".lock").read_text()


def test_a_lock_excludes_the_same_process_too_and_ends_with_its_block(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")

    def fail() -> None:
        with run.lock():
            with pytest.raises(UserError, match="Another process"), RunFolder.open(run.path).lock():
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with run.lock():
        pass


# --- weight


def test_reading_a_run_does_not_import_torch(tmp_path: Path) -> None:
    """`show` and `compare` answer at once."""
    run = new_run(tmp_path / "run")
    run.commit_round(0, {})
    code = (
        "import sys, pathlib\n"
        "from pfl_platform.store.run_folder import RunFolder\n"
        "from pfl_platform.report import tables, markdown\n"
        "from pfl_platform.evaluation import matrix\n"
        "run = RunFolder.open(pathlib.Path(sys.argv[1]))\n"
        "run.rounds(), run.read_results(), run.config, run.check_pins({})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, timeout=60)
