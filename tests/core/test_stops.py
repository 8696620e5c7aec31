"""A run that has to stop: what is said, what is kept, and that it ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.federation import session
from pfl_platform.store import atomic
from run_support import left

SMALL = "tiny-llama-s"
BRITTLE = """
import os
from dataclasses import replace
from pfl_platform.hookspecs import hookimpl

@hookimpl
def pfl_make_objective(name, options):
    if name != "brittle":
        return None
    from pfl_plugins.sft.objective import Sft

    class Brittle(Sft):
        def phases(self, ctx):
            (phase,) = super().phases(ctx)
            (step,) = phase.steps
            here = ctx.client.client_id == "b" and ctx.round_index == 1

            def loss(view):
                value = step.loss(view)
                return value * float("nan") if here and view.step == 1 and os.path.exists("broken") else value

            return (replace(phase, steps=(replace(step, loss=loss),)),)

    return Brittle()
"""


def rounds(out: Path) -> list[str]:
    return sorted(file.name for file in (out / "rounds").iterdir())


def how_to_go_on(out: Path | str) -> str:
    return (
        f"Finished rounds are kept: go on with `pfl-platform resume {out}` "
        f"(its settings are in {Path(out) / 'config.yaml'}).\n"
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestLossesThatAreNotFinite:
    def test_a_rate_that_is_too_high(self, federation: Any, pfl: Any, here: Path) -> None:
        """The first step has a finite loss, and throws the params so far that the next one has none."""
        words = ("--set=training.lr=1e30", "--local-steps=1", "--out=run")
        said = pfl("run", "--plugin=sft", "--benchmark", federation(a=SMALL, b=SMALL), *words)
        assert (said.code, said.out) == (1, "")
        assert said.err == (
            "error: The loss of a is nan in phase 'local' at local step 0: lower its learning rate or look at its data "
            "(round 2). " + how_to_go_on("run")
        )
        assert rounds(Path("run")) == ["0000.json"]
        assert "Not finished; go on with: pfl-platform resume run" in pfl("show", "run").out
        assert pfl("resume", "run", "--quiet").err == said.err  # nothing has changed, so neither has the verdict

    def test_a_passing_fault(self, federation: Any, pfl: Any, publish: Any, here: Path) -> None:
        publish("pfl-brittle", {"objectives": {"brittle": "brittle_plugin"}}, {"brittle_plugin.py": BRITTLE})
        words = ("--plugin=sft", "--set=objective=brittle", "--benchmark", federation(a=SMALL, b=SMALL))
        assert pfl("run", *words, "--out=whole").code == 0
        Path("broken").touch()
        said = pfl("run", *words, "--out=run")
        assert said.code == 1
        assert "The loss of b is nan in phase 'local' at local step 1" in said.err
        assert said.err.endswith("(round 2). " + how_to_go_on("run"))
        assert rounds(Path("run")) == ["0000.json"]
        Path("broken").unlink()
        assert pfl("resume", "run", "--quiet").code == 0
        assert left(Path("run")) == left(Path("whole"))


class TestPins:
    def test_a_strangers_package_of_another_version(self, federation: Any, pfl: Any, publish: Any, here: Path) -> None:
        files = {"brittle_plugin.py": BRITTLE}
        site = publish("pfl-brittle", {"objectives": {"brittle": "brittle_plugin"}}, files)
        Path("broken").touch()
        words = ("--plugin=sft", "--set=objective=brittle", "--benchmark", federation(a=SMALL, b=SMALL))
        assert pfl("run", *words, "--out=run").code == 1
        pins = json.loads(Path("run/run.json").read_text())["pins"]["versions"]
        assert pins["pfl-brittle"] == "1.0"
        assert {"pfl-platform", "torch", "python"} < set(pins)
        for file in (site / "pfl_brittle-1.0.dist-info").iterdir():
            file.unlink()
        (site / "pfl_brittle-1.0.dist-info").rmdir()
        publish_again(publish, files)
        said = pfl("resume", "run", "--quiet")
        assert said.code == 2
        assert said.err == (
            "error: The run run cannot go on with the same numbers: The run began with pfl-brittle 1.0; here it is "
            "1.1.\n"
        )

    def test_observers_are_not_pinned(self, federation: Any, pfl: Any, here: Path) -> None:
        assert pfl("run", "--plugin=sft", "--rounds=1", "--benchmark", federation(a=SMALL), "--out=run").code == 0
        pins = json.loads(Path("run/run.json").read_text())["pins"]["versions"]
        assert [name for name in pins if name.startswith("pfl-")] == ["pfl-platform"]


class TestEditedFiles:
    @pytest.mark.parametrize(
        ("file", "field"),
        [
            ("run.json", "pins"),
            ("prepare.json", "frozen"),
            ("prepare.json", "server.tensors"),
            ("rounds/0000.json", "states"),
            ("rounds/0000.json", "states.a"),
            ("rounds/0000.json", "server.meta"),
        ],
    )
    def test_a_field_that_was_taken_out(
        self, federation: Any, pfl: Any, here: Path, monkeypatch: pytest.MonkeyPatch, file: str, field: str
    ) -> None:
        words = ("--plugin=sft", "--benchmark", federation(a=SMALL), "--rounds=2", "--out=run")
        with monkeypatch.context() as patch:
            patch.setattr(session, "make_results", interrupted)
            assert pfl("run", *words).code == 130
        path = Path("run", file)
        whole = path.read_text()
        content = json.loads(whole)
        *parents, last = field.split(".")
        del reduce(dict.__getitem__, parents, content)[last]
        path.write_text(json.dumps(content))
        said = pfl("resume", "run", "--quiet")
        assert said.code in (1, 2)
        assert f"The file {path} has no '{field}' that can be used; put back the file as it was." in said.err
        assert "Traceback" not in said.err
        path.write_text(whole)
        assert pfl("resume", "run", "--quiet").code == 0


class TestComparedFolders:
    def test_what_is_not_finished_is_not_left_out(self, federation: Any, pfl: Any, here: Path) -> None:
        words = ("--plugin=sft", "--benchmark", federation(a=SMALL), "--rounds=1", "--seeds=0,1", "--out=runs")
        assert pfl("run", *words).code == 0
        file = Path("runs/seed1/results.json")
        whole = file.read_text()
        file.unlink()
        said = pfl("compare", "runs")
        assert (said.code, said.out) == (2, "")
        assert said.err == "error: The run in runs/seed1 is not finished; go on with: pfl-platform resume runs\n"
        for change in ({"clients": {"a": None}}, {"summary": {"self": None}}):
            file.write_text(json.dumps({**json.loads(whole), **change}))
            said = pfl("compare", "runs")
            assert said.code == 2
            assert said.err.startswith(f"error: The file {file} was changed, or another program wrote it")
        Path("runs/plan.yaml").write_text("{}\n")
        assert pfl("resume", "runs").err == "error: The file runs/plan.yaml was changed: it names no run.\n"


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def publish_again(publish: Any, files: dict[str, str]) -> None:
    publish("pfl-brittle", {"objectives": {"brittle": "brittle_plugin"}}, files, version="1.1")


class TestFullDisk:
    """No earlier round is lost, nothing half-written is left, and with space the run ends byte for byte the same."""

    def test_writes_that_fail(self, federation: Any, pfl: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Again and again the disk is full: at 20, 50 and 80 hundredths of all that a whole run writes."""
        taken, room, real = 0, 10**9, os.write

        def write(descriptor: int, data: memoryview) -> int:
            nonlocal taken
            taken += len(data)
            if taken > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        monkeypatch.setattr(atomic.os, "write", write)
        words = ("--plugin=sft", "--benchmark", federation(a=SMALL, b=SMALL))
        assert pfl("run", *words, "--out=whole").code == 0
        everything, taken = taken, 0
        kept: dict[str, bytes] = {}
        for share in (0.2, 0.5, 0.8):
            room = int(share * everything)
            said = pfl("resume", "run", "--quiet") if Path("run").exists() else pfl("run", *words, "--out=run")
            assert said.code == 1
            assert said.err == "error: The disk that holds run is full; free some space. " + how_to_go_on("run")
            assert not list(here.rglob("*.tmp"))
            found = {name: Path("run", "rounds", name).read_bytes() for name in rounds(Path("run"))}
            assert found | kept == found
            kept = found
        assert kept
        assert all(set(json.loads(content)["clients"]) == {"a", "b"} for content in kept.values())
        room = 10**9
        assert pfl("resume", "run", "--quiet").code == 0
        assert left(Path("run")) == left(Path("whole"))

    def test_a_disk_that_is_full(
        self, federation: Any, pfl: Any, quick: Any, command: Any, here: Path, disk: Path
    ) -> None:
        """With a real file system: the journal and the curves meet a full disk too, and say one line each."""
        words = ("--plugin=sft", "--benchmark", str(federation(a=SMALL, b=SMALL)))
        done = command("run", *quick, *words, "--out", disk / "run")
        assert done.returncode == 1
        assert done.stderr.endswith(
            f"error: The disk that holds {disk / 'run'} is full; free some space. {how_to_go_on(disk / 'run')}"
        )
        assert "Traceback" not in done.stderr
        assert rounds(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert pfl("resume", disk / "run", "--quiet").code == 0
        assert pfl("run", *words, "--out=whole").code == 0
        assert left(disk / "run") == left(Path("whole"))

    def test_a_run_that_finds_no_room(self, federation: Any, pfl: Any, here: Path, disk: Path) -> None:
        (disk / "fill").write_bytes(b"x" * 1_000_000)
        with (disk / "fill").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        words = ("--plugin=sft", "--benchmark", federation(a=SMALL))
        unmade = f"error: The folder {disk / 'new'} cannot be made: No space left on device."
        foreseen = "error: The run folder will hold at least "
        for more, sentence in (((), foreseen), (("--force",), unmade), (("--compare=fedit",), unmade)):
            said = pfl("run", *words, *more, "--out", disk / "new")
            assert (said.code, said.out) == (2, "")
            assert said.err.startswith(sentence)
            assert said.err.count("\n") == 1
            assert [file.name for file in disk.iterdir()] == ["fill"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system; test_writes_that_fail says the same of failing writes")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def heed_ctrl_c() -> None:
    """A test run in the background hands SIGINT down as ignored; a user's terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_interrupted(
    number: signal.Signals, code: int, federation: Any, pfl: Any, quick: Any, tmp_path: Path
) -> None:
    fed = federation(a=SMALL, b=SMALL)
    words = ["--plugin=sft", "--benchmark", str(fed), "--rounds=8", "--set=evaluation.every=8"]
    program = "import sys; from pfl_platform.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", *quick, *words, "--out", "run"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - the child is Python with one thread
    )
    out = tmp_path / "run"
    while not (out / "rounds" / "0001.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert complained == (
        f"error: Stopped by {number.name}; finished tasks and rounds are kept; go on with: pfl-platform resume run\n"
    )
    assert not list(out.rglob("*.tmp"))
    done = len(rounds(out))
    assert 2 <= done < 8
    assert pfl("resume", out, "--quiet").code == 0
    whole = tmp_path / "whole"
    assert pfl("run", *words, "--out", whole).code == 0
    assert left(out) == left(whole)
