"""How fast a finished run's adapters learn tasks that no client had, against fresh ones.

For every unseen task and every backbone of the run there is a client that trains alone, from the mean of what the run's
clients on that backbone ended with (see `starting`), and is scored every few steps. Each start is a run of its own in
the folder, so that it can be stopped, gone on with and shown like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark, ClientData, FixedBenchmark, TaskData
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.records import progress_of
from pfl_platform.federation.rounds import score_task
from pfl_platform.federation.setup import build
from pfl_platform.plugins import PluginManager, default
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.run_folder import RunFolder

Say = Callable[[str], None]
FRESH = "fresh"
"""The name of the start that has learned nothing."""
FILE = "adaptation.json"


@dataclass(frozen=True)
class Adaptation:
    """How long, how often scored, and on how many test items of each task (0: all)."""

    steps: int = 200
    every: int = 10
    items: int = 0

    def check(self) -> None:
        if self.steps < 1 or self.every < 1 or self.steps % self.every:
            raise UserError(
                f"--steps must be a multiple of --every, both at least 1; here are {self.steps} and {self.every}."
            )
        if self.items < 0:
            raise UserError(f"--items is a number of test items per task, or 0 for all; {self.items} is neither.")


def adapt(
    runs: Sequence[Path],
    out: Path,
    asked: Adaptation,
    *,
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Trains from every start and returns what `adaptation.json` then holds; what is there already is not done again.

        steps    at which models were scored, from 0 on
        starts   name -> {"run": its folder or None, "mean": [score at each step], "tasks": task -> the same},
                 means over the backbones; the first is `fresh`

    benchmark: takes the place of the one that the runs name. Every start trains with the adapter, rate and batch of its
    run; fresh adapters with those of the first, which also says the backbones.
    """
    asked.check()
    if (out / "run.json").exists():
        raise UserError(f"The folder {out} holds a run; name another with --out.")
    manager = plugins or PluginManager()
    sources = {name: RunFolder.ended(run) for name, run in zip(names_of(runs), runs, strict=True)}
    first = next(iter(sources.values()))
    for folder in sources.values():
        if folder.config.benchmark != first.config.benchmark:
            raise UserError(f"The runs {first.path} and {folder.path} are of different benchmarks.")
    whole = benchmark or manager.make("benchmark", first.config.benchmark.name, first.config.benchmark.options)
    tasks = learners(whole, first)
    starts: dict[str, Any] = {}
    begun: dict[str, RunFolder | None] = {FRESH: None, **sources}
    for name, source in begun.items():
        say(f"From {name}: {len(tasks.clients)} models, {asked.steps} steps each")
        config = config_for(manager, (source or first).config, source, asked, whole.unseen)
        place = out / name
        if (place / "run.json").is_file():
            if RunFolder.open(place).config != session.pinned(config):
                raise UserError(f"The folder {out} holds another adaptation; name a new one with --out.")
            results = session.resume(place, quiet=True, plugins=manager, benchmark=tasks)
        else:
            results = session.run(config, place, quiet=True, plugins=manager, benchmark=tasks)
        before = untrained(place, manager, tasks)
        starts[name] = {"run": str(source.path) if source else None, **curves(results, before)}
    found = {"steps": list(range(0, asked.steps + 1, asked.every)), "starts": starts}
    RunFolder(out).write_extra(FILE, found)
    return found


def names_of(runs: Sequence[Path]) -> list[str]:
    """What each start is called: the name of its folder.

    >>> names_of([Path("runs/mine"), Path("runs/theirs")])
    ['mine', 'theirs']
    """
    names = [run.resolve().name for run in runs]
    if not names:
        raise UserError("Name at least one finished run to start from.")
    if twice := next((name for name in names if names.count(name) > 1 or name in (FRESH, FILE)), None):
        raise UserError(f"The run folders need names of their own, other than '{FRESH}'; '{twice}' is not.")
    return names


def learners(benchmark: Benchmark, run: RunFolder) -> FixedBenchmark:
    """A client for every unseen task and every backbone of a run."""
    if not benchmark.unseen:
        raise UserError(f"The benchmark '{benchmark.name}' has no unseen tasks to adapt to.")
    backbones = sorted({entry["backbone"] for entry in (run.read_results() or {"clients": {}})["clients"].values()})
    clients = [
        ClientData(f"{task.name} on {backbone}", backbone, (task,))
        for task in benchmark.unseen
        for backbone in backbones
    ]
    return FixedBenchmark(f"{benchmark.name}, unseen tasks", tuple(clients), f"unseen:{benchmark.digest()}")


def config_for(
    manager: PluginManager,
    source: RunConfig,
    start: RunFolder | None,
    asked: Adaptation,
    unseen: Sequence[TaskData],
) -> RunConfig:
    """Local training as the source trains, from one start."""
    given = source.model_dump(mode="json")
    kept = {key: given[key] for key in ("benchmark", "adapter", "backbone_options", "seed", "engine", "heads")}
    metrics = {name: given["metrics"][name] for name in given["metrics"] if name in {task.metric for task in unseen}}
    training = {key: value for key, value in given["training"].items() if key != "lr_scale"}
    evaluation = {"every": 1, "others": False, "unseen": False, "baseline": False, "items": asked.items}
    return Resolver(manager).resolve(
        Request(
            method=default("local-training", "method").name,
            options={
                **kept,
                "metrics": metrics,
                "training": training,
                "rounds": asked.steps // asked.every,
                "local_steps": asked.every,
                "evaluation": {**given["evaluation"], **evaluation},
                "stream": {"protocol": "static"},
                "start": str(start.path.resolve()) if start else "",
            },
        )
    )


def untrained(place: Path, manager: PluginManager, tasks: FixedBenchmark) -> dict[str, float]:
    """Client id -> score of its first state, before any step."""
    folder = RunFolder.open(place)
    file = place / "start.json"
    if file.exists():
        return dict(folder.read_extra(file.name)["scores"])
    with folder.lock():
        setup = build(folder.config, manager, tasks)
        fed, prepared = setup.federation(folder.store), folder.read_prepare() or {}
        fed.frozen.update(prepared["frozen"])
        begin = progress_of({"states": prepared["states"], "server": prepared["server"]})
        with session.numerics(folder.config):
            engine = InProcessEngine(setup.worker(folder.store))
            outcomes = engine.run([score_task(fed, setup.parts, begin, client, 0) for client in fed.clients])
        scores = {name: fmean(outcome.scores.values()) for name, outcome in outcomes.items()}
        folder.write_extra(file.name, {"scores": scores})
    return scores


def curves(results: Mapping[str, Any], before: Mapping[str, float]) -> dict[str, Any]:
    """Scores at every point from step 0 on: the mean over all models, and of each task over its backbones."""
    lines = {
        client: [before[client], *(value for _, value in entry["curve"]["self"])]
        for client, entry in results["clients"].items()
    }
    by_task: dict[str, list[list[float]]] = {}
    for client, line in lines.items():
        by_task.setdefault(client.partition(" on ")[0], []).append(line)
    mean = [fmean(scores) for scores in zip(*lines.values(), strict=True)]
    tasks = {task: [fmean(scores) for scores in zip(*rows, strict=True)] for task, rows in by_task.items()}
    return {"mean": mean, "tasks": tasks}
