"""Settings that are chosen on validation samples: what is tried, what is scored, and what the run then is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.cli import running
from pfl_platform.config import RunConfig
from pfl_platform.data import FixedBenchmark
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.evaluation.comparison import summarise
from pfl_platform.federation import session
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.recipes import Request, Resolver
from pfl_platform.settings import read
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.tuning import candidates, grid

COEF = "aggregator.options.merge_coef"
ONE_ROUND = ("aggregator=task-arithmetic", "personalizer=replied", "backbone_options.init=0", "evaluation.others=false")


def bench(folder: Path, *settings: str, rounds: int = 1) -> Bench:
    return Bench("fedit", folder, ("tiny-llama-s", "tiny-llama-m"), (*ONE_ROUND, *settings), rounds=rounds)


def tuned(kit: Bench, **grids: list[Any]) -> RunConfig:
    given = {"aggregator.merge_coef": grids.pop("coef")} if "coef" in grids else {}
    given |= {key.replace("_", ".", 1): values for key, values in grids.items()}
    config = kit.config()
    return Resolver(kit.manager).resolve(Request(options={**_flat(config), "tune": given}))


def _flat(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key != "tune" and value is not None}


@pytest.fixture
def by_coefficient(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[float, float]], None]:
    """Scores on validation that are made up: those of a merged adapter, by its size, in the order of coefficients."""

    def install(scores: dict[float, float]) -> None:
        before: Callable[..., Outcome] = Worker.execute
        seen: dict[tuple[str, str], int] = {}

        def execute(self: Worker, task: Task, *rest: Any) -> Outcome:
            outcome = before(self, task, *rest)
            if task.split != "validation":
                return outcome
            turn = seen[task.actor, task.stage] = seen.get((task.actor, task.stage), -1) + 1
            score = list(scores.values())[turn]
            return replace(outcome, scores={cell.key: score for cell in task.score})

        monkeypatch.setattr(Worker, "execute", execute)

    return install


def start(kit: Bench, config: RunConfig, out: Path, benchmark: FixedBenchmark | None = None) -> dict[str, Any]:
    return session.run(config, out, quiet=True, plugins=kit.manager, benchmark=benchmark or kit.benchmark(2))


def test_all_combinations_in_order_under_full_names(tmp_path: Path) -> None:
    config = tuned(bench(tmp_path), coef=[0.1, 1.0], training_lr=[1e-3, 1e-2])
    tried = candidates(config)
    assert [dict(item.values) for item in tried] == [
        {COEF: 0.1, "training.lr": 1e-3},
        {COEF: 0.1, "training.lr": 1e-2},
        {COEF: 1.0, "training.lr": 1e-3},
        {COEF: 1.0, "training.lr": 1e-2},
    ]
    assert [item.config.aggregator.options["merge_coef"] for item in tried] == [0.1, 0.1, 1.0, 1.0]
    assert [item.config.training.lr for item in tried] == [1e-3, 1e-2, 1e-3, 1e-2]
    assert not any(item.config.tune for item in tried)
    assert tried[0].label == "merge_coef=0.1, lr=0.001"


def test_replies_are_tuned_without_training_twice(
    tmp_path: Path, executed: list[Task], by_coefficient: Callable[[dict[float, float]], None]
) -> None:
    by_coefficient({0.1: 20.0, 0.5: 60.0, 1.0: 40.0})
    kit = bench(tmp_path)
    results = start(kit, tuned(kit, coef=[0.1, 0.5, 1.0]), tmp_path / "out")
    assert [task.actor for task in executed if task.phases] == ["a", "b"]
    scored = [task.split for task in executed if task.stage == "score"]
    assert scored == ["validation"] * 6 + ["test"] * 2
    found = results["tuning"]
    assert found["how"] == "replies"
    assert [item["score"] for item in found["candidates"]] == [20.0, 60.0, 40.0]
    assert found["chosen"] == {COEF: 0.5}
    assert results["config"]["aggregator"]["options"]["merge_coef"] == 0.5
    assert RunFolder.open(tmp_path / "out").read_tuning() == found
    assert not (tmp_path / "out" / "tuning").exists()


def test_the_run_is_the_one_with_the_chosen_value(
    tmp_path: Path, by_coefficient: Callable[[dict[float, float]], None]
) -> None:
    kit = bench(tmp_path)
    plain = start(kit, kit.config(**{"aggregator.merge_coef": 0.5}), tmp_path / "plain")
    by_coefficient({0.1: 20.0, 0.5: 60.0})
    chosen = start(kit, tuned(kit, coef=[0.1, 0.5]), tmp_path / "tuned")
    assert chosen["clients"]["a"]["tasks"] == plain["clients"]["a"]["tasks"]
    files = [tmp_path / name / "adapters" / "a" / "adapter_model.safetensors" for name in ("plain", "tuned")]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [RunFolder.open(tmp_path / name).rounds()[0]["server"]["tensors"] for name in ("plain", "tuned")]
    assert records[0] == records[1]


def test_both_ways_score_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = bench(tmp_path)
    config = tuned(kit, coef=[0.1, 8.0])
    quick = start(kit, config, tmp_path / "quick")["tuning"]
    monkeypatch.setattr("pfl_platform.federation.tuning.on_replies", lambda *_: None)
    whole = start(kit, config, tmp_path / "whole")["tuning"]
    assert whole["how"] == "whole runs"
    assert [item["score"] for item in whole["candidates"]] == [item["score"] for item in quick["candidates"]]
    assert whole["chosen"] == quick["chosen"]


@pytest.mark.parametrize(
    ("settings", "rounds", "grids"),
    [
        ((), 1, {"training_lr": [1e-3, 1e-2]}),
        ((), 2, {"coef": [0.1, 1.0]}),  # the first reply changes what clients learn next
        (("personalizer=null",), 1, {"coef": [0.1, 1.0]}),
        (("aggregator=regmean",), 1, {"aggregator_a": [0.1, 0.9]}),  # clients measure for it
    ],
)
def test_whatever_reaches_the_clients_takes_whole_runs(
    tmp_path: Path, executed: list[Task], settings: tuple[str, ...], rounds: int, grids: dict[str, list[Any]]
) -> None:
    kit = bench(tmp_path, *settings, "local_steps=1", rounds=rounds)
    results = start(kit, tuned(kit, **grids), tmp_path / "out")
    assert results["tuning"]["how"] == "whole runs"
    assert len([task for task in executed if task.phases]) == 3 * 2 * rounds
    below = [RunFolder.open(tmp_path / "out" / "tuning" / name) for name in ("000", "001")]
    for folder in below:
        own = folder.read_results()
        assert own is not None
        assert own["config"]["evaluation"]["split"] == "validation"
        assert own["evaluated"] == [rounds]
    splits = [task.split for task in executed if task.score]
    assert "test" not in splits[: max(place for place, split in enumerate(splits) if split == "validation")]
    best = max(results["tuning"]["candidates"], key=lambda item: item["score"])
    assert results["tuning"]["chosen"] == best["values"]


def test_a_stopped_search_goes_on_where_it_was(
    tmp_path: Path, executed: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = bench(tmp_path, "local_steps=1")
    config = tuned(kit, training_lr=[1e-3, 1e-2])
    undisturbed = start(kit, config, tmp_path / "whole")
    executed.clear()
    record, count = Worker.execute, 0

    def killed(self: Worker, task: Task, *rest: Any) -> Outcome:
        nonlocal count
        count += 1
        if count == 6:  # in the middle of the second candidate
            raise KeyboardInterrupt
        return record(self, task, *rest)

    monkeypatch.setattr(Worker, "execute", killed)
    with pytest.raises(KeyboardInterrupt):
        start(kit, config, tmp_path / "out")
    done = len(executed)
    monkeypatch.setattr(Worker, "execute", record)
    session.resume(tmp_path / "out", quiet=True, plugins=kit.manager, benchmark=kit.benchmark(2))
    results = RunFolder.open(tmp_path / "out").read_results()
    assert results is not None
    assert done == 5
    assert results["clients"]["a"]["tasks"] == undisturbed["clients"]["a"]["tasks"]
    assert [item["score"] for item in results["tuning"]["candidates"]] == [
        item["score"] for item in undisturbed["tuning"]["candidates"]
    ]
    everything = [task.digest() for task in executed]
    assert len(set(everything)) == len(everything)  # nothing was done twice


def test_seeds_are_one_group_whatever_each_has_chosen() -> None:
    def results(seed: int, chosen: float) -> dict[str, Any]:
        values = {key: {"mean": 1.0, "min": 1.0} for key in ("last", "auc", "baseline", "gain")}
        config = {
            "method": "m",
            "seed": seed,
            "tune": {COEF: [0.1, 1.0]},
            "aggregator": {"name": "t", "options": {"merge_coef": chosen}},
        }
        summary = {kind: values for kind in ("self", "others", "unseen")}
        return {"method": "m", "benchmark": "b", "seed": seed, "clients": {}, "summary": summary, "cost": {}} | {
            "config": config
        }

    assert len(summarise([results(0, 0.1), results(1, 1.0)])) == 1


def test_the_command_line_and_recipes_say_the_same(tmp_path: Path) -> None:
    assert grid("aggregator.merge_coef=0.1,0.3,1.0") == ("aggregator.merge_coef", [0.1, 0.3, 1.0])
    recipe = tmp_path / "grid.yaml"
    recipe.write_text("method: fedit\ntune: {aggregator.merge_coef: [0.1, 0.3], training.lr: [1e-4]}\n")
    settings = ("aggregator=task-arithmetic",)
    written = Resolver(bench(tmp_path).manager).resolve(Request(recipe=str(recipe), sets=settings))
    typed = running.plan(
        Request(
            "fedit",
            options={"tune": dict([grid("aggregator.merge_coef=0.1,0.3"), grid("training.lr=1e-4")])},
            sets=settings,
        )
    )[""]
    assert written.tune == typed.tune == {COEF: (0.1, 0.3), "training.lr": (1e-4,)}
    compared = running.plan(Request(recipe=str(recipe), sets=settings), compare=["sft"])
    assert compared["fedit"].tune == written.tune
    # Its own aggregator has no such option, and what is left is no choice.
    assert (compared["sft"].tune, compared["sft"].training.lr) == (None, 1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tune", "aggregator.merge_coef"], "write it as key=value,value"),
        (["--tune", "aggregator.merge_coef="], "write it as key=value,value"),
        (["--tune", "trainign.lr=1,2"], "Did you mean 'training'?"),
        (["--tune", "seed=1,2"], "The setting 'seed' cannot be tuned"),
        (["--tune", "evaluation.split=test,validation"], "cannot be tuned"),
        (["--tune", "training.lr=1e-3,-1"], "'training.lr' cannot be -1"),
        (["--tune", "aggregator.coef=0.1,0.3"], "With coef=0.1: There is no option 'coef'"),
        (["--tune", "aggregator.merge_coef=0.1,-3"], "With merge_coef=-3"),
        (["--tune", "training.lr=[1"], "Not readable as YAML"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(
    words: list[str], sentence: str, tmp_path: Path, pfl: Callable[..., Any], federation: Callable[..., Path]
) -> None:
    home = federation(a="tiny-llama-s")
    said = pfl(
        "run", "--plugin", "fedit", "--benchmark", home, "--set", "aggregator=task-arithmetic", "--set",
        "benchmark.validation_fraction=0.3", *words, "--out", tmp_path / "out",
    )  # fmt: skip
    assert said.code == 2
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_tuning_without_validation_samples_is_refused(tmp_path: Path) -> None:
    kit = bench(tmp_path)
    full = kit.benchmark()
    first = full.clients[0]
    bare = replace(first, tasks=tuple(replace(task, validation=[]) for task in first.tasks))
    benchmark = FixedBenchmark("contract", (bare, *full.clients[1:]), "contract-1", public_sets={})
    with pytest.raises(
        UserError, match="Tuning needs validation samples, and the task 'copy-a' of client 'a' has none"
    ):
        start(kit, tuned(kit, coef=[0.1, 1.0]), tmp_path / "out", benchmark)
    assert not (tmp_path / "out").exists()


def test_what_was_chosen_is_shown_with_the_run(tmp_path: Path, pfl: Callable[..., Any]) -> None:
    kit = bench(tmp_path)
    start(kit, tuned(kit, coef=[0.1, 0.5]), tmp_path / "out")
    shown = " ".join(pfl("show", tmp_path / "out").out.split())
    assert "Tuned on validation samples, by replies: merge_coef=" in shown
    assert "merge_coef=0.5:" in shown
    assert read(tmp_path / "out" / "config.yaml")["tune"] == {COEF: [0.1, 0.5]}


def test_a_run_that_tunes_nothing_needs_no_validation_samples(tmp_path: Path) -> None:
    kit = bench(tmp_path, rounds=1)
    clients = tuple(
        replace(client, tasks=tuple(replace(task, validation=()) for task in client.tasks))
        for client in kit.benchmark(2).clients
    )
    benchmark = FixedBenchmark("bare", clients, "bare")
    results = session.run(kit.config(), tmp_path / "run", plugins=kit.manager, quiet=True, benchmark=benchmark)
    assert results["tuning"] is None
