"""Generated code is confined: every way out is tried, and HumanEval's programs are put together and scored."""

from __future__ import annotations

import doctest
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from pfl_benchmarks.sandbox import filter as calls
from pfl_benchmarks.sandbox import humaneval, running
from pfl_benchmarks.sandbox.plugin import pfl_make_metric
from pfl_benchmarks.sandbox.running import Limits, run
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError

SHORT = Limits(1, 256)


@pytest.fixture(autouse=True)
def confining() -> None:
    """Skips where the machine cannot confine what is run, as the metric refuses to run anything there."""
    if sys.platform != "linux":
        pytest.skip("the sandbox is Linux's")
    try:
        run("pass")
    except UserError as error:
        pytest.skip(str(error))


def test_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(humaneval).failed == 0


def test_programs_pass_and_fail() -> None:
    assert run("import math, re, collections, hashlib\nassert math.sqrt(4) == 2") == "passed"
    for program in ("assert False", "def", "raise SystemExit(0)", "import os; os._exit(0)", "\0", "exit()"):
        assert run(program) == "failed", program


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))") == "failed"
        with pytest.raises(TimeoutError):
            server.accept()
    assert run("import socket\ntry:\n    socket.socketpair()\nexcept PermissionError:\n    pass") == "passed"


def test_no_processes_and_no_signals() -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except PermissionError:\n        break"
    assert run(bomb) == "passed"
    assert run("import subprocess\nsubprocess.run(['/bin/true'])") == "failed"
    assert run(f"import os, signal\nos.kill({os.getpid()}, signal.SIGTERM)") == "failed"
    assert run("import os\nos.execv('/bin/true', ['true'])") == "failed"


def test_no_file_changes(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("whole", encoding="utf-8")
    for act in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(kept)!r}, 'r+')",
        f"open({str(kept)!r}, 'a')",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.unlink({str(kept)!r})",
        f"os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.chmod({str(kept)!r}, 0)",
        f"os.symlink('/', {str(tmp_path / 'link')!r})",
    ):
        assert run(f"import os\n{act}") == "failed", act
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text(encoding="utf-8") == "whole"
    assert run(f"assert open({str(kept)!r}).read() == 'whole'") == "passed"


def test_endless_loops_end() -> None:
    assert run("while True: pass", SHORT) == "timeout"


def test_sleeps_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STARTING", 0.5)
    began = time.monotonic()
    assert run("import time\ntime.sleep(600)", SHORT) == "timeout"
    assert time.monotonic() - began < 60


def test_memory_ends() -> None:
    roomy = Limits(60, 256)
    assert run("held = []\nwhile True: held.append(bytearray(1 << 24))", roomy) == "failed"
    assert run("held = bytearray(1 << 26)", roomy) == "passed"


def test_a_program_that_talks_without_end_is_cut_off() -> None:
    """It finds the number under which the parent listens; what it says there is neither kept nor believed."""
    talk = "import os\nfor number in range(3, 9):\n    try:\n        while True: os.write(number, b'x' * 4096)\n"
    assert run(f"{talk}    except OSError: pass", Limits(60, 256)) != "passed"


def test_limits_cannot_be_raised_and_the_filter_cannot_be_lifted() -> None:
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"
    assert run(raised) == "failed"
    lifted = "import ctypes\nassert ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0"
    assert run(lifted) == "failed"


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(running.CHILD.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "filter.py").write_text("def confine():\n    raise OSError('no filter here')", encoding="utf-8")
    monkeypatch.setattr(running, "CHILD", child)
    with pytest.raises(UserError, match=r"not run: this machine cannot confine it \(no filter here\)"):
        run("x = 1")
    (tmp_path / "filter.py").write_text("def confine(): pass", encoding="utf-8")
    running.require.cache_clear()
    try:
        with pytest.raises(UserError, match="the sandbox does not hold what it should"):
            running.require()
    finally:
        running.require.cache_clear()
        Path("/tmp/pfl-sandbox-proof").unlink(missing_ok=True)


@pytest.mark.parametrize("machine", calls.MACHINES)
def test_the_filter_lets_no_call_through_that_is_not_listed(machine: str) -> None:
    """Walks the filter as the kernel does, for every number."""
    lines = calls.program(machine)
    listed = {pair[machine == "aarch64"] for pair in calls.ALLOWED.values()}
    for number in range(600):
        for flags, read_only in ((0, True), (0o1, False), (0o2, False), (0o102, False), (0o2000000, True)):
            wanted = number in listed or (number in calls.OPENS[machine] and read_only)
            data = {0: number, 4: calls.MACHINES[machine], **dict.fromkeys(range(16, 64, 8), flags)}
            assert (_verdict(lines, data) == 0x7FFF0000) == wanted, (number, flags)
    other = {0: 0, 4: 0x40000003}
    assert _verdict(lines, other) == 0x80000000


def _verdict(lines: list[tuple[int, int, int, int]], data: dict[int, int]) -> int:
    held, place = 0, 0
    while True:
        code, yes, no, value = lines[place]
        place += 1
        if code == 0x20:
            held = data[value]
        elif code == 0x54:
            held &= value
        elif code in (0x15, 0x35):
            place += yes if (held == value if code == 0x15 else held >= value) else no
        else:
            return value


def test_humaneval_is_off_until_it_is_allowed() -> None:
    with pytest.raises(UserError, match=r"allow it with --set metrics\.humaneval\.options\.run_code=true"):
        pfl_make_metric("humaneval", {})
    metric = pfl_make_metric("humaneval", {"run_code": True})
    assert metric is not None
    test = "def check(candidate):\n    assert candidate(2, 3) == 5\ncheck(add)"
    sample = Sample("0", (Turn('def add(a, b):\n    """ Sum. """\n', "    return a + b\n"),), references=(test,))
    for answer in (
        "    return a + b\n",
        "return a + b\n\n\ndef other():\n    return 1",
        "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.",
        "total = a + b\n    return total",
    ):
        assert metric.score(answer, sample) == 1.0, answer
    for answer in ("    return a - b", "", "no code", "    return (", "    import os\n    os._exit(0)"):
        assert metric.score(answer, sample) == 0.0, answer
    assert "5 s and 512 MiB" in metric.notes[0]
