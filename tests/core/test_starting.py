"""Starting from what a finished run ended with, and how fast unseen tasks are learned from there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.cli import main
from pfl_platform.config import RunConfig
from pfl_platform.data import FixedBenchmark
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.adapting import FRESH, Adaptation, adapt, curves, names_of
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import client

TINY = ("tiny-llama-s", "tiny-llama-m")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(
        "fedmosaic",
        tmp_path_factory.mktemp("starting"),
        TINY,
        ("evaluation.others=false", "adapter.blocks=2"),
        rounds=1,
    )


@pytest.fixture(scope="module")
def source(kit: Bench) -> Path:
    """FedMosaic, clients a and b on the small backbone, c on the large one; its adapter is PQ-LoRA."""
    return kit.run()


def alone(kit: Bench, *settings: str) -> Bench:
    return Bench("sft", kit.folder / "alone", TINY, ("evaluation.others=false", *settings), rounds=1)


@pytest.fixture(scope="module")
def started(kit: Bench, source: Path) -> tuple[Bench, Path]:
    """Local training with the same adapter, from there."""
    bench = alone(kit, "adapter=pqlora", "adapter.r=4", "adapter.blocks=2", f"start={source}")
    return bench, bench.run()


def states(run: Path, record: dict[str, Any] | None, *clients: str) -> list[dict[str, Tensor]]:
    folder = RunFolder.open(run)
    return [folder.store.get((record or {})["states"][name]) for name in clients]


def test_a_run_starts_from_the_mean_of_another(started: tuple[Bench, Path], source: Path) -> None:
    _, out = started
    ended, begun = RunFolder.open(source).last_round(), RunFolder.open(out).read_prepare()
    a, b, c = states(source, ended, "a", "b", "c")
    first, second, third = states(out, begun, "a", "b", "c")
    assert first.keys() == second.keys()
    for key, value in first.items():
        site = key.removeprefix("local/")
        mean = (a[f"global/{site}"].double() + b[f"global/{site}"].double()) / 2
        assert torch.equal(value, mean.float())
        assert torch.equal(second[key], value)
    assert all(torch.equal(value, c[key.replace("local/", "global/")]) for key, value in third.items())
    before = RunFolder.open(source).read_prepare()
    assert before is not None
    assert begun is not None
    assert begun["frozen"] == before["frozen"]  # the aligned A and B came along
    assert RunFolder.open(out).config.start == str(source)


def test_what_does_not_fit_is_refused_before_anything_is_written(kit: Bench, source: Path, tmp_path: Path) -> None:
    def refused(config: RunConfig, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            session.run(config, tmp_path / "new", quiet=True, plugins=kit.manager, benchmark=kit.benchmark())
        assert not (tmp_path / "new").exists()

    same = alone(kit, "adapter=pqlora", "adapter.r=4", "adapter.blocks=2", f"start={source}").config()
    refused(alone(kit, f"start={source}").config(), r"'a' needs \(4, .*, of which the run .* has none; a start needs")
    refused(same.model_copy(update={"adapter": same.adapter.model_copy(update={"options": {"r": 2, "blocks": 2}})}),
            r"of which the run .* has \(")  # fmt: skip
    refused(same.model_copy(update={"start": str(tmp_path / "no")}), r"There is no run at .*no: no such folder\.")
    large = client("d", "tiny-llama-m", 4)
    only = replace(kit.benchmark(), clients=(large,))
    small = Bench("fedit", tmp_path / "small", TINY, ("evaluation.others=false",), rounds=1).run(clients=1)
    with pytest.raises(UserError, match=r"has no client on 'tiny-llama-m' to start 'd' from\."):
        session.run(alone(kit, f"start={small}").config(), tmp_path / "new", quiet=True, plugins=kit.manager,
                    benchmark=only)  # fmt: skip
    (small / "results.json").unlink()
    refused(alone(kit, f"start={small}").config(), r"is not finished, so nothing starts from it")


def test_params_that_mean_something_else_at_every_client_are_no_start(kit: Bench, tmp_path: Path) -> None:
    apart = Bench("osrm", tmp_path, TINY, ("evaluation.others=false",), rounds=1).run(clients=2)
    with pytest.raises(UserError, match=r"a key means something else at every client, so the mean .* is no start\."):
        alone(kit, f"start={apart}").run(clients=2)


def test_a_changed_start_stops_a_resume(started: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, out = started[0], Path(shutil.copytree(started[1], tmp_path / "run"))
    (out / "results.json").unlink()
    about = json.loads((out / "run.json").read_bytes())
    assert len(about["pins"]["start"]) == 64
    about["pins"]["start"] = "0" * 64
    (out / "run.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"cannot go on with the same numbers: .*'start'"):
        bench.resume(out)


def with_unseen(kit: Bench) -> FixedBenchmark:
    return replace(kit.benchmark(), unseen=client("stranger", "", 8).tasks)


def test_adaptation(kit: Bench, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts, two backbones, one unseen task; a second call trains and scores nothing."""
    asked = Adaptation(steps=4, every=2, items=2)
    found = adapt([source], tmp_path, asked, plugins=kit.manager, benchmark=with_unseen(kit))
    assert found["steps"] == [0, 2, 4]
    assert list(found["starts"]) == [FRESH, source.name]
    for start in found["starts"].values():
        assert len(start["mean"]) == 3
        assert start["tasks"] == {"copy-stranger": start["mean"]}
    assert json.loads((tmp_path / "adaptation.json").read_bytes()) == found
    results = json.loads((tmp_path / source.name / "results.json").read_bytes())
    assert set(results["clients"]) == {f"copy-stranger on {name}" for name in TINY}
    assert (results["rounds"], results["local_steps"]) == (2, 2)
    executed: list[Task] = []
    before = Worker.execute

    def counting(self: Worker, task: Task, *rest: Any) -> Outcome:
        executed.append(task)
        return before(self, task, *rest)

    monkeypatch.setattr(Worker, "execute", counting)
    assert adapt([source], tmp_path, asked, plugins=kit.manager, benchmark=with_unseen(kit)) == found
    assert executed == []
    for other in (Adaptation(steps=4, every=1, items=2), Adaptation(steps=4, every=2, items=1)):
        with pytest.raises(UserError, match=r"holds another adaptation; name a new one with --out\."):
            adapt([source], tmp_path, other, plugins=kit.manager, benchmark=with_unseen(kit))
    with pytest.raises(UserError, match=r"holds a run; name another with --out\."):
        adapt([source], source, asked, plugins=kit.manager, benchmark=with_unseen(kit))


def test_curves_by_hand() -> None:
    """Task t on two backbones: 10 and 30 before, 20 and 40 after; task u on one: 0, then 90."""
    results = {"clients": {
        "t on x": {"curve": {"self": [[1, 20.0]]}},
        "t on y": {"curve": {"self": [[1, 40.0]]}},
        "u on x": {"curve": {"self": [[1, 90.0]]}},
    }}  # fmt: skip
    before = {"t on x": 10.0, "t on y": 30.0, "u on x": 0.0}
    assert curves(results, before) == {
        "mean": [40 / 3, 50.0],
        "tasks": {"t": [20.0, 30.0], "u": [0.0, 90.0]},
    }


def test_what_cannot_be_adapted_is_said(kit: Bench, source: Path, tmp_path: Path) -> None:
    for wrong, sentence in (
        (Adaptation(steps=5, every=2), r"--steps must be a multiple of --every, both at least 1; here are 5 and 2\."),
        (Adaptation(items=-1), r"-1 is neither"),
    ):
        with pytest.raises(UserError, match=sentence):
            adapt([source], tmp_path, wrong, plugins=kit.manager, benchmark=with_unseen(kit))
    with pytest.raises(UserError, match=r"The benchmark 'contract' has no unseen tasks to adapt to\."):
        adapt([source], tmp_path, Adaptation(), plugins=kit.manager, benchmark=kit.benchmark())
    with pytest.raises(UserError, match=r"need names of their own, other than 'fresh'; 'sft' is not\."):
        names_of([Path("a/sft"), Path("b/sft")])
    assert main(["adapt", str(source), "--tasks", "seen", "--out", str(tmp_path / "x")]) == 2
