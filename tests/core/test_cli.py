"""The commands, as processes where a process matters: exit codes, streams, signals, what is left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

import pfl_platform
import pfl_platform.federation
from pfl_platform.cli import main, running
from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import RunStopped, UserError

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = [
    "--rounds=2", "--local-steps=2", "--threads=1", "--set=training.batch_size=2", "--set=evaluation.items=2",
    "--set=adapter.r=4",
    "--set=evaluation.others=false", "--set=evaluation.every=2", "--set=evaluation.baseline=false",
]  # fmt: skip


def config(method: str = "m", seed: int = 0, benchmark: Choice | None = None) -> RunConfig:
    part = Choice(name="x")
    return RunConfig(
        method=method, benchmark=benchmark or Choice(name="b"), adapter=part, objective=part, aggregator=part, seed=seed
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a command that was refused; it stands alone on the standard error stream."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


class TestRefusals:
    """Bad input: one sentence, exit code 2, nothing on disk."""

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["rnu"], "No such command 'rnu'"),
            (["run", "--plugn", "sft"], "No such option: --plugn"),
            (["run", "--rounds", "ten"], "Invalid value for '--rounds'"),
            (["run"], "No method is named; name one with --plugin"),
            (["run", "--plugin", "fedmosiac"], "There is no method called 'fedmosiac'. Did you mean 'fedmosaic'?"),
            (["run", "--plugin", "sft", "--benchmark", "drake-synt"], "Did you mean 'drake-synth'?"),
            (["run", "--plugin", "sft", "--benchmark", "./nowhere"], "The benchmark folder nowhere does not exist."),
            (["run", "--plugin", "sft", "--recipe", "nothing.yaml"], "The recipe nothing.yaml does not exist."),
            (
                ["run", "--plugin", "sft", "--adapter", "lorra"],
                "There is no adapter called 'lorra'. Did you mean 'lora'?",
            ),
            (["run", "--plugin", "sft", "--backbone", "tiny-lama-s"], "Did you mean 'tiny-llama-s'?"),
            (["run", "--plugin", "sft", "--set", "rounds=0"], "The setting 'rounds' cannot be 0 (from --set)"),
            (["run", "--plugin", "sft", "--rounds", "0"], "The setting 'rounds' cannot be 0 (from the command line)"),
            (
                ["run", "--plugin", "ditto", "--set", "objective.lam=-1", "--print-config"],
                "option 'lam' of the objective 'ditto'",
            ),
            (["run", "--plugin", "sft", "--seeds", "0,x"], "'0,x' of --seeds is not a list of whole numbers"),
            (
                ["run", "--plugin", "sft", "--compare", "fedti"],
                "There is no method called 'fedti'. Did you mean 'fedit'?",
            ),
            (["resume", "nowhere"], "There is no run folder nowhere."),
            (["compare", "nowhere"], "There is no run folder nowhere."),
            (["compare", "nowhere", "--json", "--markdown"], "give one of --json and --markdown"),
            (["list", "plugin-s"], "'plugin-s' cannot be listed. Did you mean 'plugins'?"),
            (
                ["show", "fedmosiac"],
                "Nothing is called 'fedmosiac', and no run folder is there. Did you mean 'fedmosaic'?",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes(self, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sentence in err
        assert list(here.iterdir()) == []

    def test_through_a_process(self, command: Command, tmp_path: Path) -> None:
        sentence = refusal(command("run", "--plugin", "fedmosiac", cwd=tmp_path))
        assert sentence == "There is no method called 'fedmosiac'. Did you mean 'fedmosaic'?"
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_holds_something(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
        sentence = refusal(command("run", "--plugin", "sft", "--out", "mine"))
        assert sentence == "The folder mine is not empty; name another with --out."
        assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]

    def test_debug_shows_where_it_comes_from(self, command: Command) -> None:
        done = command("--debug", "show", "nothing-of-that-name")
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stderr.rstrip().splitlines()[-1].startswith("pfl_platform.errors.UserError: Nothing is called")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestListAndShow:
    def test_the_command_is_installed(self) -> None:
        (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "pfl-platform"]
        assert script.load() is main

    def test_version(self, command: Command) -> None:
        assert command("--version").stdout == f"pfl-platform {pfl_platform.__version__}\n"

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("plugins", "fedmosaic"), ("methods", "sft"), ("method", "fedit"), ("benchmarks", "drake-synth"),
            ("backbones", "tiny-llava-qwen-m"), ("adapters", "pqlora"), ("objectives", "fedmosaic"),
            ("aggregators", "rela"), ("metrics", "choice"), ("observers", "progress"),
        ],
    )  # fmt: skip
    def test_list(self, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", kind, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows[name]["package"] == "pfl-platform"
        assert main(["list", kind]) == 0
        assert name in capsys.readouterr().out

    def test_list_of_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", "postprocessors", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    def test_show_a_method_and_what_it_is_made_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["show", "fedmosaic", "--json"]) == 0
        cards = {card["kind"]: card for card in json.loads(capsys.readouterr().out)}
        assert set(cards) == {"method", "objective", "aggregator", "adapter"}
        assert cards["method"]["settings"]["aggregator"] == "rela"
        assert cards["method"]["citation"].startswith("Seo et al.")
        options = {row["option"]: row for kind in ("objective", "aggregator") for row in cards[kind]["options"]}
        assert options["every"]["default"] == 10
        assert options["alignment.b"]["type"].startswith("cca | ")
        assert main(["show", "fedmosaic"]) == 0
        shown = capsys.readouterr().out
        assert "alignment.lam" in shown
        assert "batches between sketches" in shown

    def test_what_is_shown_is_plain_text_where_it_is_not_a_terminal(self, command: Command) -> None:
        done = command("show", "pqlora")
        assert done.returncode == 0
        assert "\x1b" not in done.stdout


class TestPlans:
    def test_print_config_is_a_recipe_of_the_same_run(self, command: Command, tmp_path: Path) -> None:
        words = [
            "run",
            "--plugin",
            "fedit",
            "--rounds=3",
            "--seed=4",
            "--backbone",
            "tiny-llava-llama-s",
            "--print-config",
        ]
        printed = command(*words, "--adapter=pqlora", "--set=adapter.r=6", "--public-size=7").stdout
        written = yaml.safe_load(printed)
        assert (written["rounds"], written["seed"], written["backbones"]) == (3, 4, {"*": "tiny-llava-llama-s"})
        assert written["adapter"] == {"name": "pqlora", "options": {"r": 6}}
        assert written["public"]["size"] == 7
        (tmp_path / "again.yaml").write_text(printed, encoding="utf-8")
        assert command("run", "--recipe", "again.yaml", "--print-config").stdout == printed

    def test_compare_and_seeds(self, command: Command) -> None:
        words = ["--plugin=fedmosaic", "--compare=sft,fedit,fedmosaic", "--seeds=0,2", "--rounds=2", "--print-config"]
        plan = yaml.safe_load(command("run", *words).stdout)
        assert list(plan) == [f"{method}/seed{seed}" for seed in (0, 2) for method in ("fedmosaic", "sft", "fedit")]
        assert {run["rounds"] for run in plan.values()} == {2}
        assert [run["seed"] for run in plan.values()] == [0, 0, 0, 2, 2, 2]
        assert plan["sft/seed2"]["aggregator"]["name"] == "none"

    def test_new_folders(self, here: Path) -> None:
        def name(*configs: RunConfig) -> str:
            return str(running._new_folder(dict(enumerate(configs))))  # type: ignore[arg-type]

        assert name(config()) == "runs/m-b-seed0"
        (here / "runs" / "m-b-seed0").mkdir(parents=True)
        assert name(config()) == "runs/m-b-seed0-2"
        assert name(config("m"), config("n")) == "runs/compare-b-seed0"
        assert name(config(seed=0), config(seed=1)) == "runs/m-b-seeds"
        own = Choice(name="b", options={"path": "/data/hospitals"})
        assert name(config(seed=3, benchmark=own)) == "runs/m-hospitals-seed3"

    def test_names_and_numbers(self, here: Path) -> None:
        assert running.names(" a, b,,c ") == ["a", "b", "c"]
        assert running.numbers("0,1,1,2", "--seeds") == [0, 1, 2]
        (here / "own").mkdir()
        assert running.public_name("own") == str(here / "own")
        assert running.public_name("drawn") == "drawn"
        assert running.public_name(None) is None


class FakeSession(types.ModuleType):
    """In the place of the session: writes what a run leaves, and stops where it is told to."""

    def __init__(self) -> None:
        super().__init__("pfl_platform.federation.session")
        self.calls: list[tuple[str, str]] = []
        self.stop_at: str | None = None
        self.error: BaseException = RunStopped("The loss of client 'a' is NaN in round 3, step 7.")

    def run(self, config: RunConfig, out: Path, **_: Any) -> dict[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.json").write_text("{}", encoding="utf-8")
        self.calls.append(("run", config.method))
        if config.method == self.stop_at:
            raise self.error
        return self._end(out, config.method)

    def resume(self, out: Path, **_: Any) -> dict[str, Any]:
        self.calls.append(("resume", out.name))
        return self._end(out, out.name)

    def _end(self, out: Path, method: str) -> dict[str, Any]:
        (out / "results.json").write_text(json.dumps({"method": method}), encoding="utf-8")
        return {"method": method}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(pfl_platform.federation, "session", fake, raising=False)
    monkeypatch.setattr(running, "_check", lambda runs: None)
    monkeypatch.setattr(running, "_check_results", lambda file, value: None)
    monkeypatch.setattr(
        running, "print_results", lambda results, form="screen": print([item["method"] for item in results])
    )
    return fake


class TestSeveralRuns:
    def test_a_comparison_that_stops_is_finished_by_resume(
        self, session: FakeSession, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        session.stop_at = "sft"
        words = ["run", "--plugin", "fedmosaic", "--compare", "sft,fedit", "--out", "three"]
        assert main(words) == 1
        assert capsys.readouterr().err == "error: The loss of client 'a' is NaN in round 3, step 7.\n"
        assert session.calls == [("run", "fedmosaic"), ("run", "sft")]
        session.calls.clear()
        assert main(["resume", "three"]) == 0
        assert session.calls == [("resume", "sft"), ("run", "fedit")]
        assert capsys.readouterr().out == "['fedmosaic', 'sft', 'fedit']\nThe runs are in three.\n"
        assert main(["compare", "three"]) == 0
        assert capsys.readouterr().out == "['fedit', 'fedmosaic', 'sft']\n"

    def test_a_misfit_of_the_last_shows_before_the_first_starts(
        self, session: FakeSession, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.undo()  # the real check, but nothing may be run
        monkeypatch.chdir(here)
        monkeypatch.setattr(running, "_carry_out", lambda *_: pytest.fail("a run was started"))
        text = "adapter: {r: 4}\nmethods: {fedit: {adapter: {r: 4096}}}\nbackbone_options: {init: 0}\n"
        (here / "wide.yaml").write_text(text, encoding="utf-8")
        words = ["run", "--plugin", "sft", "--compare", "fedit", "--recipe", "wide.yaml", "--out", "two"]
        assert main(words) == 2
        assert "Rank 4096 is larger than" in capsys.readouterr().err
        assert [file.name for file in here.iterdir()] == ["wide.yaml"]

    def test_a_plan_that_was_changed(
        self, session: FakeSession, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (here / "two").mkdir()
        (here / "two" / "plan.yaml").write_text("sft: {rounds: 3}\n", encoding="utf-8")
        assert main(["resume", "two"]) == 2
        assert "two/plan.yaml was changed: The setting 'method' is missing." in capsys.readouterr().err

    def test_one_run_has_the_folder_to_itself(self, session: FakeSession, here: Path) -> None:
        assert main(["run", "--plugin", "sft", "--out", "deep/er"]) == 0
        assert sorted(file.name for file in (here / "deep" / "er").iterdir()) == ["results.json", "run.json"]

    def test_unfinished_runs_are_not_compared(
        self, session: FakeSession, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        session.stop_at = "sft"
        assert main(["run", "--plugin", "sft", "--out", "one"]) == 1
        assert main(["compare", "one"]) == 2
        assert "The run in one is not finished; go on with: pfl-platform resume one" in capsys.readouterr().err

    def test_a_defect_keeps_its_traceback(self, session: FakeSession, here: Path) -> None:
        session.stop_at, session.error = "sft", ZeroDivisionError("a defect")
        with pytest.raises(ZeroDivisionError):
            main(["run", "--plugin", "sft", "--out", "one"])

    def test_a_results_file_that_is_broken(self, here: Path) -> None:
        (here / "one").mkdir()
        (here / "one" / "results.json").write_text("{", encoding="utf-8")
        with pytest.raises(UserError, match=r"The results one/results\.json cannot be read"):
            running.compare([Path("one")])


WAITS = """
import sys, time, types
from pathlib import Path
import pfl_platform.federation

def run(config, out, quiet=False, carrier=None, profile=False):
    if {begun}:
        out.mkdir()
        (out / "run.json").write_text("{{}}")
    print("ready", flush=True)
    time.sleep(60)

session = types.ModuleType("pfl_platform.federation.session")
session.run = run
sys.modules[session.__name__] = pfl_platform.federation.session = session
from pfl_platform.cli import main
sys.exit(main(["run", "--plugin", "sft", "--out", "stopped"]))
"""


def heed_ctrl_c() -> None:
    """A test run in the background hands SIGINT down as ignored; a user's terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code", "begun", "sentence"),
    [
        (
            signal.SIGINT, 130, True,
            "Stopped by SIGINT; finished tasks and rounds are kept; go on with: pfl-platform resume stopped",
        ),
        (
            signal.SIGTERM, 143, True,
            "Stopped by SIGTERM; finished tasks and rounds are kept; go on with: pfl-platform resume stopped",
        ),
        (signal.SIGTERM, 143, False, "Stopped by SIGTERM; nothing was kept"),
    ],
)  # fmt: skip
def test_signals(number: signal.Signals, code: int, begun: bool, sentence: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS.format(begun=begun)]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - the child is Python with one thread
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, f"error: {sentence}\n")


def test_a_run_from_start_to_end(command: Command, tmp_path: Path) -> None:
    done = command("run", "--plugin", "sft", *SMALL, "--out", "one", "--quiet", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "The run is in one." in done.stdout
    results = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))
    assert results["method"] == "sft"
    assert command("resume", "one", "--quiet").returncode == 0
    shown = command("show", "one")
    assert shown.returncode == 0
    assert "method: sft" in shown.stdout
    assert json.loads(command("compare", "one", "one", "--json").stdout) == [results, results]
    assert command("compare", "one", "one").returncode == 0
    page = command("show", "one", "--markdown").stdout.splitlines()
    assert page[2].startswith("| client | backbone | Self A_last |")
    assert any(line.startswith("| **mean** |") for line in page)
    again = command("run", "--plugin", "sft", *SMALL, "--out", "one")
    assert again.returncode == 2
    assert "go on with the run in it by `pfl-platform resume one`, or name another with --out." in again.stderr
    assert json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8")) == results
