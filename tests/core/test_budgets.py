"""Comparisons under a budget: what is measured, what is solved, that it is frozen, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pfl_platform.budgets import find, table
from pfl_platform.cli import budgets, main
from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.evaluation.comparison import summarise
from pfl_platform.federation.session import numerics, pinned
from pfl_platform.federation.setup import build
from pfl_platform.ledger import budget as ledger
from pfl_platform.ledger import costs as booked_costs
from pfl_platform.ledger import probe as probes
from pfl_platform.ledger.budget import nearest_number
from pfl_platform.ledger.probe import Clock, Probe, probing
from pfl_platform.settings import read
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from run_support import left

Federation = Callable[..., Path]
TWO = {"a": "tiny-llama-s", "b": "tiny-llama-m"}
PLAIN = ("--set=evaluation.others=false", "--set=evaluation.every=9", "--set=evaluation.baseline=false")


def bench(method: str, folder: Path, *settings: str, rounds: int = 3) -> Bench:
    small = ["backbone_options.init=0", "evaluation.baseline=false", "evaluation.every=9", "evaluation.others=false"]
    return Bench(method, folder, ("tiny-llama-s", "tiny-llama-m"), [*small, "local_steps=8", *settings], rounds=rounds)


@contextmanager
def measured(kit: Bench, **changes: Any) -> Iterator[tuple[RunConfig, Probe]]:
    config = pinned(kit.config(**changes))
    setup = build(config, kit.manager, kit.benchmark())
    with numerics(config), probing(setup) as probe:
        yield config, probe


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


class TestSolving:
    @pytest.mark.parametrize(
        ("beside", "each", "asked", "steps"),
        [
            (0, 20, 2_000, 100),
            (0, 40, 2_000, 50),  # twice per step: half of the steps
            (500, 40, 2_000, 37),  # (2000 - 500) / 40 = 37.5; of two that are equally near the smaller
            (1_990, 40, 2_000, 1),
            (0, 7, 2_000, 286),  # 285.7
        ],
    )
    def test_numbers_that_a_person_can_redo(self, beside: int, each: int, asked: int, steps: int) -> None:
        assert nearest_number(lambda count: beside + each * count, asked, start=100) == steps

    def test_stairs(self) -> None:
        """10 per step and 25 for every tenth: 90 steps cost 900 + 225."""
        assert nearest_number(lambda count: 10 * count + 25 * -(-count // 10), 1_125, start=100) == 90

    def test_no_number(self) -> None:
        assert nearest_number(lambda count: 5.0, 1_000, start=10) is None
        assert nearest_number(lambda count: 5.0 * count, 1_000, start=10, most=20) is None

    def test_a_method_that_costs_twice_per_step_gets_half_of_the_steps(self, tmp_path: Path) -> None:
        with measured(bench("sft", tmp_path)) as (config, probe):
            asked = ledger.asked("flops", "flops", probe, config, {})
        with measured(bench("ditto", tmp_path)) as (config, probe):
            solved = ledger.solved(asked, probe, config)
        assert (solved.rounds, solved.local_steps) == (3, 4)
        assert solved.budget is not None
        assert solved.budget.expected == pytest.approx(asked.amount, rel=1e-9)

    def test_what_a_round_costs_beside_is_taken_off(self, tmp_path: Path) -> None:
        """The server distils in each round; a local step costs what one of the first method costs."""
        few = ("public.size=4", "aggregator.samples=4", "local_steps=60")
        with measured(bench("sft", tmp_path, "local_steps=60")) as (config, probe):
            asked = ledger.asked("flops", "flops", probe, config, {})
        with measured(bench("takfl", tmp_path, *few)) as (config, probe):
            solved = ledger.solved(asked, probe, config)
        given = solved.budget
        assert given is not None
        assert given.per_step == pytest.approx(asked.amount / 180, rel=1e-6)
        assert given.per_round > given.per_step
        assert solved.local_steps == round((asked.amount / 3 - given.per_round) / given.per_step)
        assert given.expected == pytest.approx(3 * (given.per_round + solved.local_steps * given.per_step), rel=1e-6)


class TestProbe:
    @pytest.mark.parametrize(
        ("method", "settings"),
        [
            ("fedmosaic", ("aggregator.every=5", "adapter.blocks=2")),  # a sketch at two of eight steps
            ("feddpa", ()),  # two phases of a half each
            ("fedit", ("cohort=2", "rounds=4")),
        ],
    )
    def test_what_is_expected_is_what_the_run_takes(
        self, method: str, settings: tuple[str, ...], tmp_path: Path
    ) -> None:
        kit = bench(method, tmp_path, *settings)
        with measured(kit) as (config, probe):
            expected = {name: probe.cost(name, config.rounds, 8) for name in ("steps", "flops", "bytes")}
        folder = RunFolder.open(kit.run())
        prepared = folder.read_prepare()
        assert prepared is not None
        found = booked_costs.held({"quantity": "flops", "asked": expected["flops"]}, folder.rounds(), prepared["cost"])[
            "spent"
        ]
        assert found["steps"] == expected["steps"]
        assert found["bytes"] == pytest.approx(expected["bytes"], rel=1e-9)
        assert found["flops"] == pytest.approx(expected["flops"], rel=0.05)

    def test_preparation_is_in_the_budget(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each round costs the same; the alignment is added once, also where it is found in the cache."""
        monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
        found = []
        for _ in range(2):
            with measured(bench("fedmosaic", tmp_path, "adapter.blocks=2", "public.size=4"), rounds=1) as (_, probe):
                found.append(probe.before("flops"))
                one, two = (probe.cost("flops", rounds, 8) for rounds in (1, 2))
                assert two - one == pytest.approx(one - found[0])
                assert probe.before("steps") == 0
        assert found[0] == found[1] > 0

    def test_reached_includes_preparation(self) -> None:
        cost = {"steps": 5, "flops": 30.0, "up_payload": 1, "down_payload": 0}
        rounds = [{"clients": {"a": {"cost": cost}}, "shared_cost": {"flops": 10.0, "steps": 9}}]
        told = booked_costs.held({"quantity": "flops", "asked": 100.0}, rounds, {"flops": 40.0, "steps": 3})
        assert (told["reached"], told["before"], told["deviation"]) == (80.0, 40.0, pytest.approx(-20.0))
        assert (told["spent"]["steps"], told["spent"]["bytes"]) == (5, 1)

    def test_equal_probes_give_equal_prices_and_leave_nothing(
        self, tmp_path: Path, executed: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
        found = []
        for _ in range(2):
            with measured(bench("fedit", tmp_path, rounds=20)) as (_, probe):
                found.append([probe.cost(name, 20, 8) for name in ("flops", "bytes")])
                assert list((tmp_path / "scratch").iterdir()) != []
        assert found[0] == found[1]
        assert list((tmp_path / "scratch").iterdir()) == []
        assert not any(task.score for task in executed)
        assert {phase.amount for task in executed for phase in task.phases} == {probes.STEPS}
        assert len(executed) == 2 * 3 * 3  # three clients in the first, the middle and the last round

    @pytest.mark.parametrize(("begins", "stops"), [(0, 7), (1, 20), (3, 20)])
    def test_rounds_of_which_the_server_trains_in_some(self, begins: int, stops: int) -> None:
        """The first and the last round in which it does, and their neighbours in which it does not, are found."""
        probe = Probe(None, None)  # type: ignore[arg-type]
        waiting = [0, 10, 19]
        while waiting:
            index = waiting.pop(0)
            whole = {("step", "distil"): 1} if begins <= index < stops else {}
            probe._rest[index] = [SimpleNamespace(whole=whole)]  # type: ignore[list-item]
            waiting = waiting or probes._between(probe)
        assert len(probe._rest) <= 8
        assert begins in probe._rest
        assert max(begins - 1, 0) in probe._rest
        assert {stops - 1, min(stops, 19)} <= set(probe._rest)

    def test_seconds_by_kind_of_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = iter([0.0, 1.0, 2.0, 5.0, 5.5])
        monkeypatch.setattr(probes.time, "perf_counter", lambda: next(now))
        clock = Clock()  # at 0
        step, look = ("step", "local", "step"), ("statistic", "sketch")
        clock._per_unit[step] = 2.0
        assert clock.known(step)  # at 1: what follows is the step's, the way there and back before it is booked, too
        clock.book(step, 10)
        assert not clock.known(look)  # at 2
        clock.measure(look, lambda: 2.0, lambda: torch.ones(1, 1) @ torch.ones(1, 3))  # to 5; 6 FLOPs
        clock.book(look, 1)
        clock.known(step)  # at 5.5
        clock.book(step, 20)
        clock.end(8.0)
        assert clock.seconds == {step: [1.0, 2.5], look: [0.5]}
        assert clock.flops == {step: 60.0, look: 3.0}


class TestCommand:
    def test_flops(self, federation: Federation, pfl: Any, tmp_path: Path) -> None:
        words = ("--benchmark", federation(**TWO), "--local-steps=8", *PLAIN, "--budget=flops", "--seeds=3,5")
        said = pfl("run", "--plugin=sft", "--compare=ditto", *words, "--out", tmp_path / "out")
        assert said.code == 0, said.err
        plan = read(tmp_path / "out" / "plan.yaml")
        assert {name: run["local_steps"] for name, run in plan.items()} == {
            "sft/seed3": 8, "ditto/seed3": 4, "sft/seed5": 8, "ditto/seed5": 4,
        }  # fmt: skip
        assert plan["ditto/seed3"]["budget"] == plan["ditto/seed5"]["budget"]
        runs = {name: results(tmp_path / "out" / name) for name in plan}
        for name, run in runs.items():
            held = run["budget"]
            assert held["asked"] == plan["sft/seed3"]["budget"]["asked"]
            assert held["reached"] == run["cost"]["flops"], name
            assert held["deviation"] == pytest.approx(100 * (held["reached"] / held["asked"] - 1))
            assert abs(held["deviation"]) < 5
            assert held["reached"] == pytest.approx(runs[f"sft/{name[-5:]}"]["budget"]["reached"], rel=0.03)
        assert "Budget 'flops'" in said.out
        assert "3 x 4" in said.out
        assert [group["label"] for group in summarise(list(runs.values()))] == ["sft", "ditto"]
        shown = pfl("show", tmp_path / "out" / "ditto" / "seed3").out
        assert "Budget 'flops', from 'sft': flops asked" in shown

    def test_rows_of_a_recipe(
        self, federation: Federation, pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "table.yaml").write_text(
            "rows: {One: {method: sft}, Two: {method: ditto}, Also: {method: ditto, objective: {lam: 0.5}}}\n",
            encoding="utf-8",
        )
        words = ("--recipe=table.yaml", "--benchmark", federation(**TWO), *PLAIN, "--local-steps=8")
        said = pfl("run", *words, "--budget=flops", "--out", tmp_path / "out")
        assert said.code == 0, said.err
        plan = read(tmp_path / "out" / "plan.yaml")
        assert {name: run["local_steps"] for name, run in plan.items()} == {"One": 8, "Two": 4, "Also": 4}
        assert {run["budget"]["asked"] for run in plan.values()} == {plan["One"]["budget"]["asked"]}
        assert {run["budget"]["method"] for run in plan.values()} == {"One"}

    @pytest.mark.parametrize(
        ("budget", "expected"),
        [("steps", {"One": 6, "Two": 6, "Half": 12}), ("fedmosaic-table", {"One": 6, "Two": 3, "Half": 6})],
    )
    def test_rows_with_rounds_of_their_own(
        self,
        budget: str,
        expected: dict[str, int],
        federation: Federation,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Equal steps are those of the run: 24 here, in twice two rounds or in four."""
        (tmp_path / "table.yaml").write_text(
            "rounds: 4\nlocal_steps: 6\n"
            "rows: {One: {method: sft}, Two: {method: ditto, local_steps: 2}, Half: {method: feddat, rounds: 2}}\n",
            encoding="utf-8",
        )
        words = ["run", "--recipe", str(tmp_path / "table.yaml"), "--benchmark", str(federation(**TWO))]
        assert main([*words, f"--budget={budget}", "--print-config"]) == 0
        (tmp_path / "plan.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
        plan = read(tmp_path / "plan.yaml")
        assert {name: run["local_steps"] for name, run in plan.items()} == expected
        assert [run["rounds"] for run in plan.values()] == [4, 4, 2]

    def test_bytes_by_rounds_at_equal_steps(self, federation: Federation, pfl: Any, tmp_path: Path) -> None:
        words = ("--benchmark", federation(a="tiny-llama-s", b="tiny-llama-s"), "--rounds=4", "--local-steps=6")
        said = pfl(
            "run", "--plugin=fedit", "--compare=ffa-lora", *words, "--budget=bytes", *PLAIN, "--out", tmp_path / "o"
        )
        assert said.code == 0, said.err
        plan = read(tmp_path / "o" / "plan.yaml")
        one, other = plan["fedit"], plan["ffa-lora"]
        assert other["rounds"] > one["rounds"] == 4  # it sends B alone
        assert other["local_steps"] == round(24 / other["rounds"])
        assert other["evaluation"]["every"] == round(9 * other["rounds"] / 4)
        first, second = (results(tmp_path / "o" / name) for name in plan)
        assert first["budget"]["reached"] == first["budget"]["asked"]
        assert second["budget"]["reached"] == second["budget"]["expected"]
        assert abs(second["budget"]["reached"] - first["budget"]["reached"]) <= other["budget"]["per_round"]

    def test_a_table(self, federation: Federation, pfl: Any, tmp_path: Path) -> None:
        words = ("--benchmark", federation(**TWO), "--local-steps=50", "--budget=fedmosaic-table")
        said = pfl("run", "--plugin=sft", "--compare=fedit,ditto,feddat", *words, "--print-config")
        assert said.code == 0, said.err
        (tmp_path / "plan.yaml").write_text(said.out, encoding="utf-8")
        steps = {name: run["local_steps"] for name, run in read(tmp_path / "plan.yaml").items()}
        assert steps == {"sft": 50, "fedit": 50, "ditto": 25, "feddat": 22}  # 21.5
        assert read(tmp_path / "plan.yaml")["ditto"]["budget"]["expected"] == 3 * 2 * 25
        assert "fedmosaic-table" in pfl("list", "budgets").out

    def test_killed_and_resumed(
        self, federation: Federation, quick: tuple[str, ...], pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["run", *quick, "--plugin=sft", "--compare=ditto", "--benchmark", str(federation(**TWO))]
        words += ["--budget=flops", "--rounds=2", "--local-steps=2", *PLAIN]
        entry = [sys.executable, "-c", "import sys; from pfl_platform.cli import main; sys.exit(main())"]
        process = subprocess.Popen([*entry, *words, "--out", str(tmp_path / "killed")], env=dict(os.environ))
        while not (tmp_path / "killed" / "sft" / "rounds" / "0000.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "ditto").exists()
        frozen = (tmp_path / "killed" / "plan.yaml").read_bytes()
        monkeypatch.setattr(budgets, "solved", lambda *_: pytest.fail("solved again"))
        assert pfl("resume", tmp_path / "killed", "--quiet").code == 0
        assert (tmp_path / "killed" / "plan.yaml").read_bytes() == frozen
        monkeypatch.undo()
        assert pfl(*words, "--out", tmp_path / "whole").code == 0
        assert (tmp_path / "whole" / "plan.yaml").read_bytes() == frozen
        for method in ("sft", "ditto"):
            assert left(tmp_path / "killed" / method) == left(tmp_path / "whole" / method)
            config = (tmp_path / "killed" / method / "config.yaml").read_bytes()
            assert config == (tmp_path / "whole" / method / "config.yaml").read_bytes()
            ours, theirs = (results(tmp_path / name / method)["budget"] for name in ("killed", "whole"))
            assert {**ours, "spent": None} == {**theirs, "spent": None}


class TestRefusals:
    """One sentence, exit code 2, nothing on disk."""

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (
                ["--budget=flops"],
                "--budget holds runs to each other's cost; name other methods with --compare, or rows with --row.",
            ),
            (["--budget=flops", "--compare=sft"], "name other methods with --compare, or rows with --row."),
            (["--budget=flosp", "--compare=fedit"], "There is no budget called 'flosp'. Did you mean 'flops'?"),
            (["--budget=fedmosaic", "--compare=fedit"], "Did you mean 'fedmosaic-table'?"),
            (["--budget=fedmosaic-table", "--compare=potara"], "says nothing of 'potara'; it lists sft, fedit,"),
            (["--budget=fedmosaic-table", "--compare=feddat", "--local-steps=1"], "leaves 'feddat' no local step"),
            (["--budget=flops", "--compare=fedit", "--set=local_epochs=1"], "count in local epochs"),
            (["--budget=flops", "--compare=fedit", "--tune=local_steps=1,2"], "cannot be tuned under a budget"),
            (["--budget=flops", "--compare=ditto", "--local-steps=1"], "'ditto' already takes"),
            (["--budget=flops", "--compare=feddpa", "--local-steps=1"], "local_steps=2 or more"),
            (["--budget=bytes", "--compare=fedit"], "A run of 'sft' takes no bytes"),
            (["--budget=bytes", "--plugin=fedit", "--compare=sft"], "'sft' sends nothing"),
            (["--budget=bytes", "--plugin=ffa-lora", "--compare=fedit", "--rounds=1"], "With a single round 'fedit'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes(self, words: list[str], sentence: str, federation: Federation, pfl: Any, tmp_path: Path) -> None:
        folder = federation(a="tiny-llama-s", b="tiny-llama-s")
        said = pfl("run", "--plugin=sft", "--benchmark", folder, *PLAIN, *words, "--out", tmp_path / "deep" / "out")
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert sentence in said.err
        assert not (tmp_path / "deep").exists()

    def test_one_row_under_two_seeds(self, pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "one.yaml").write_text("method: sft\nrows: {one: {}}\n", encoding="utf-8")
        said = pfl("run", "--recipe=one.yaml", "--seeds=1,2", "--budget=flops")
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert "name other methods with --compare, or rows with --row." in said.err
        assert [file.name for file in tmp_path.iterdir()] == ["one.yaml"]

    def test_a_published_table_has_no_two_rows_of_a_method(
        self, pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "two.yaml").write_text(
            "method: ditto\nrows: {one: {}, two: {objective: {lam: 0.5}}}\n", encoding="utf-8"
        )
        said = pfl("run", "--recipe=two.yaml", "--budget=fedmosaic-table")
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert "has one number of local steps for 'ditto', of which these are several rows" in said.err

    @pytest.mark.parametrize(
        "text", ["steps: 7\n", "steps: {}\n", "steps: {sft: 0}\n", "steps: {sft: yes please}\n", ""]
    )
    def test_a_broken_table(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"mine\.yaml must hold `steps` by method, numbers above 0"):
            table("mine", tmp_path / "mine.yaml")

    def test_print_config_measures_nothing(
        self, federation: Federation, pfl: Any, executed: list[Any], tmp_path: Path
    ) -> None:
        words = ("--plugin=sft", "--compare=ditto", "--benchmark", federation(**TWO), "--budget=flops")
        said = pfl("run", *words, "--print-config")
        assert said.code == 0
        assert "solved when the runs start" in said.err
        assert executed == []


def test_names() -> None:
    assert find("bytes") == "bytes"
    found = find("fedmosaic-table")
    assert not isinstance(found, str)
    assert found.of(["sft", "takfl", "fedmosaic"], "sft", 50) == {"sft": 50, "takfl": 38, "fedmosaic": 47}
    assert found.summary.endswith("published scripts have them.")
