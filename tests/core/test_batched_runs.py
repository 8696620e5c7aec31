"""Runs whose clients train side by side: methods against themselves, what is done again, what is refused and said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.config import EngineOptions
from pfl_platform.engines.batches import CROWDED, alone_sentence, clients_of, units, why_alone
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Cost, Task
from pfl_platform.plugins import PluginManager
from pfl_platform.testing.bench import Bench
from pfl_platform.testing.rounds import Rounds
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Step

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL, LARGE = "tiny-llama-s", "tiny-llama-m"


def rounds(method: str, folder: Path, clients: int = 3, **changes: Any) -> Rounds:
    """Clients a and b on one backbone, c on another; evaluated never."""
    bench = Bench(method, folder, (SMALL, LARGE), ["backbone_options.init=0", "training.lr=0.0003"])
    return Rounds(bench, clients=clients, **{"local_steps": 2, "evaluation.baseline": False, **changes})


@pytest.mark.parametrize("method", ["sft", "fedit", "ditto", "fedmosaic"])
def test_methods_agree_after_two_rounds(method: str, tmp_path: Path) -> None:
    one = rounds(method, tmp_path).go(2)
    other = rounds(method, tmp_path, **{"engine.batch_clients": 2}).go(2)
    for client in "abc":
        mine, theirs = one.state(client), other.state(client)
        keys = [key for key in mine if key in one.worker.host(one.tasks[client].backbone).params]
        assert len(keys) > 20
        assert mine.keys() == theirs.keys()
        a, b = (torch.cat([state[key].double().flatten() for key in keys]) for state in (mine, theirs))
        differs = float((a - b).norm() / a.norm())
        assert differs <= 1e-5
        # c has no company, and trains as it does alone; what it is sent may come from those that have.
        assert client != "c" or method != "sft" or differs == 0
        costs = [found.outcomes[client].cost for found in (one, other)]
        assert costs[0].flops_formula == costs[1].flops_formula
        assert (costs[0].steps, costs[0].up_wire) == (costs[1].steps, costs[1].up_wire)


class _Told(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[str] = []

    def noted(self, sentence: str) -> None:
        self.said.append(sentence)

    def step_done(self, task: Task, step: int, amount: int, loss: float) -> None:
        self.steps.append(f"{task.actor}{step}")


def test_what_is_missing_of_a_unit_comes_out_as_it_would_have(tmp_path: Path) -> None:
    place = rounds("sft", tmp_path, **{"engine.batch_clients": 2}).go()
    tasks, told = list(place.tasks.values()), _Told()
    engine = InProcessEngine(place.worker, [told])
    assert engine.run(tasks) == place.outcomes
    assert not told.steps, "all was known"
    del place.store._outcomes[place.tasks["b"].digest()]
    again = engine.run(tasks)
    assert sorted(told.steps) == ["a0", "a1", "b0", "b1"]  # a's turn was needed for b's, its outcome is there
    assert again["a"] is place.outcomes["a"]
    assert again["b"].state == place.outcomes["b"].state
    assert list(again) == ["a", "b", "c"]


def test_who_does_not_fit_side_by_side_trains_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = rounds("sft", tmp_path, **{"training.batch_size": 1}).go()
    run = Host.run

    def short(host: Host, inputs: Any, **options: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return run(host, inputs, **options)

    monkeypatch.setattr(Host, "run", short)
    place, said = rounds("sft", tmp_path, **{"training.batch_size": 1, "engine.batch_clients": 2}), []
    place.worker.place.relief.tell = said.append
    place.go()
    assert said == [alone_sentence(CROWDED)]
    for client in "abc":
        mine, theirs = alone.state(client), place.state(client)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_there_is_room_for_those_who_come_and_no_more(tmp_path: Path) -> None:
    place = rounds("sft", tmp_path, **{"engine.batch_clients": 1000}).go()
    assert [len(lanes.lanes) for lanes in place.worker._lanes.values()] == [2]


def test_who_has_no_company_is_said_once(tmp_path: Path) -> None:
    place = rounds("sft", tmp_path, **{"engine.batch_clients": 2})
    told = _Told()
    place._engine = InProcessEngine(place.worker, [told])
    place.go(2)
    assert told.said == [alone_sentence(f"no other client trains on '{LARGE}'")]


def test_units_follow_from_the_tasks() -> None:
    step = Step(Keys("local/*"), answers_under({"local": 1.0}), Optim(1.0))
    phase = Phase("p", (step,), 1, Epochs([], 1, 0, ""))
    load = PluginManager().make("backbone", SMALL, {"init": 0})

    def task(name: str, backbone: str = "x", **more: Any) -> Task:
        return Task(name, "round", 0, backbone, **{"phases": (phase,), **more})

    def names(tasks: list[Task], size: int) -> list[str]:
        return ["".join(item.actor for item in unit) for unit in units(tasks, size, lambda _: load)]

    many = [task(name) for name in "abcdefghi"]
    assert names(many, 8) == ["abcd", "efghi"]
    assert names(many, 1) == list("abcdefghi")
    mixed = [task("a"), task("b", "y"), task("c"), task("d", base="z"), task("e", "y"), task("f", phases=())]
    assert names(mixed, 4) == ["ac", "be", "d", "f"]
    shared = Phase("p", (Step(Keys("frozen/*"), step.loss, step.optim),), 1, phase.data)
    assert "share" in why_alone(task("a", phases=(shared,)), lambda _: load)
    assert why_alone(task("a", recorded=Cost()), lambda _: load) == "nothing is trained"


@pytest.mark.parametrize("wrong", [0, -1, "all", 2000])
def test_only_a_number_auto_or_off(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        EngineOptions(batch_clients=wrong)
    assert clients_of(EngineOptions().batch_clients, 1) == 1


def test_from_the_command_line(federation: Any, pfl: Any, tmp_path: Path, quick: tuple[str, ...]) -> None:
    """In a process of its own: what is said, and that a run goes on with nothing else."""
    data, out = federation(a=SMALL, b=SMALL, c=LARGE), tmp_path / "run"
    python = [sys.executable, "-c", "import sys; from pfl_platform.cli import main; sys.exit(main())"]
    words = [word for word in quick if word not in ("--quiet", "--rounds=3")]
    run = ["run", "-p", "fedit", "-b", str(data), *words, "--rounds=1", "--batch-clients", "2", "--out", str(out)]
    done = subprocess.run([*python, *run], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    note = alone_sentence(f"no other client trains on '{LARGE}'")
    assert f"note: {note}" in " ".join(done.stderr.split())
    file = out / "config.yaml"
    settings = file.read_text(encoding="utf-8")
    assert "batch_clients: 2" in settings
    file.write_text(settings.replace("batch_clients: 2", "batch_clients: 3"), encoding="utf-8")
    again = pfl("resume", str(out))
    assert again.code == 2
    assert "The run began with 2 for 'batch_clients'; here it is 3." in " ".join(again.err.split())
