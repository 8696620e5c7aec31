"""More of a finished run's evaluation matrix: Others, Unseen, more items of either. Nothing is trained.

Others grows with the square of the clients, so a run may leave it out. What is missing is scored afterwards, from the
states that the last round has left, cell by cell; what is known is not scored again, and a stopped filling goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark, ClientData, TaskData
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.evaluation.matrix import results as make_results
from pfl_platform.evaluation.surfaces import Cell, InferenceRecipe
from pfl_platform.federation import heads
from pfl_platform.federation.cells import cells_for, items_of
from pfl_platform.federation.components import Federation
from pfl_platform.federation.ended import Ended
from pfl_platform.federation.records import predictions, progress_of
from pfl_platform.federation.rounds import Progress, score_task, taken_in
from pfl_platform.federation.session import numerics
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Address, Outcome, Task
from pfl_platform.ledger.costs import total
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to score besides the clients' own tasks. items: of each task, 0 for all of them; None: as the run does."""

    others: bool = False
    unseen: bool = False
    items: int | None = None


def fill(
    out: Path,
    wanted: Wanted,
    *,
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Scores what is missing of the last round. Returns the content of `results.json`, which is made anew.

    A cell that was scored on at least as many items is kept. Raises `UserError` for a run that has not ended, that can
    no longer be run with the same numbers, or has nothing of what is wanted.
    """
    run = Ended.open(out, plugins, benchmark)
    _check(run.setup, wanted)
    with run.folder.lock():
        with numerics(run.config):
            filling = _Filling.of(run, wanted)
            filling.score(say)
        run.folder.write_predictions(predictions(filling.fed, filling.records[-1], filling.found["clients"]))
        done = make_results(run.folder, run.setup)
        run.folder.write_results(done)
        return done


def _check(setup: Setup, wanted: Wanted) -> None:
    if not wanted.others and not wanted.unseen:
        raise UserError("Say what to score: --others, --unseen, or both.")
    if wanted.others and len(setup.benchmark.clients) < 2:
        raise UserError(f"The benchmark '{setup.benchmark.name}' has one client; there are no others to score.")
    if wanted.unseen and not setup.benchmark.unseen:
        raise UserError(f"The benchmark '{setup.benchmark.name}' has no unseen tasks.")
    if wanted.items is not None and wanted.items < 0:
        raise UserError(f"--items is a number of test items per task, or 0 for all; {wanted.items} is neither.")


def _scoring(config: RunConfig, wanted: Wanted) -> RunConfig:
    """The run's configuration with the wanted number of items; own tasks are not scored here."""
    if wanted.items is None:
        return config
    limits = {"items": wanted.items, "items_others": wanted.items}
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=limits)})


@dataclass
class _Filling:
    """The work of one command. `found` is what `cells.json` holds."""

    folder: RunFolder
    config: RunConfig  # of the run
    setup: Setup  # with the wanted number of items
    fed: Federation
    wanted: Wanted
    records: list[dict[str, Any]]
    engine: InProcessEngine
    data: Callable[[Cell], TaskData]
    found: dict[str, Any]
    states: dict[str, Address] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Ended, wanted: Wanted) -> _Filling:
        changed, folder = replace(run.setup, config=_scoring(run.config, wanted)), run.folder
        worker = changed.worker(folder.store)
        found = folder.read_cells() or {"clients": {}, "baseline": {}, "cost": total([])}
        engine, data = InProcessEngine(worker), worker.place.cell_data
        return cls(
            folder, run.config, changed, run.federation(setup=changed), wanted, folder.rounds(), engine, data, found
        )

    def score(self, say: Say) -> None:
        if self.config.evaluation.baseline:
            self._before_training(say)
        progress = progress_of(self.records[-1])
        columns = self._columns()
        for number, (cell, lacking) in enumerate(columns.items()):
            if lacking:
                say(f"Cell {cell.key}, {number + 1} of {len(columns)}, for {len(lacking)} clients")
                outcomes = self.engine.run([self._task(progress, client, cell) for client in lacking])
                self._keep("clients", cell, outcomes)

    def _columns(self) -> dict[Cell, list[ClientData]]:
        """Every wanted cell with the clients that lack it."""
        columns: dict[Cell, list[ClientData]] = {cell: [] for cell in self._cells()}
        for client in self.fed.clients:
            known = self.records[-1]["clients"].get(client.client_id, {}).get("scores", {})
            for cell in heads.measurable(self.fed, self.fed.backbone_of[client.client_id], tuple(columns)):
                if cell.owner != client.client_id and self._lacks("clients", client.client_id, cell, known):
                    columns[cell].append(client)
        return columns

    def _cells(self) -> tuple[Cell, ...]:
        unseen = tuple(Cell("", task.name) for task in self.fed.benchmark.unseen) if self.wanted.unseen else ()
        return (cells_for(self.fed, None) if self.wanted.others else ()) + unseen

    def _lacks(self, part: str, client_id: str, cell: Cell, known: Mapping[str, float]) -> bool:
        """Whether a cell was scored on fewer items than are wanted now; `known`: scores that the run itself made."""
        entry = self.found[part].get(client_id, {}).get(cell.key)
        there = entry["items"] if entry else self._amount(self.config, cell) if cell.key in known else 0
        return bool(there < self._amount(self.setup.config, cell))

    def _amount(self, config: RunConfig, cell: Cell) -> int:
        return len(items_of(config.evaluation, self.data(cell), config.evaluation.split, own=False))

    def _task(self, progress: Progress, client: ClientData, cell: Cell) -> Task:
        """One cell of one client, from its state as it was evaluated."""
        name, last = client.client_id, int(self.records[-1]["round_index"])
        if name not in self.states:
            self.states[name] = self.fed.store.put(
                taken_in(self.fed, self.setup.parts, progress, name, self.config.rounds)
            )
        task = score_task(self.fed, self.setup.parts, progress, client, last)
        borrowed = heads.borrowed(self.fed, name, (cell,), progress.states)
        return replace(task, state=self.states[name], statistics=(), score=(cell,), heads=borrowed)

    def _before_training(self, say: Say) -> None:
        """The bare backbones on the same cells, once for all clients of a backbone."""
        prepared = (self.folder.read_prepare() or {}).get("baseline", {})
        split = self.config.evaluation.split
        for name in self.fed.backbones:
            owners = [client.client_id for client in self.fed.clients if self.fed.backbone_of[client.client_id] == name]
            for cell in heads.measurable(self.fed, name, self._cells()):
                lacking = [
                    owner
                    for owner in owners
                    if owner != cell.owner and self._lacks("baseline", owner, cell, prepared.get(owner, {}))
                ]
                if lacking:
                    say(f"Cell {cell.key}, before training, on {name}")
                    bare = InferenceRecipe(({},))
                    task = Task(
                        f"others {name}",
                        "baseline",
                        0,
                        name,
                        score=(cell,),
                        recipe=bare,
                        split=split,
                        salt=self.fed.salt,
                    )
                    outcome = self.engine.run([task])[task.actor]
                    self._keep("baseline", cell, dict.fromkeys(lacking, outcome))

    def _keep(self, part: str, cell: Cell, outcomes: Mapping[str, Outcome]) -> None:
        """Writes what was scored; from then on it is not scored again."""
        for name, outcome in outcomes.items():
            if cell.key in outcome.scores:
                self.found[part].setdefault(name, {})[cell.key] = {
                    "score": outcome.scores[cell.key],
                    "items": self._amount(self.setup.config, cell),
                    "predictions": outcome.predictions,
                }
        costs = {id(outcome): outcome.cost for outcome in outcomes.values()}  # a baseline is one for several clients
        self.found["cost"] = total([self.found["cost"], *costs.values()])
        self.folder.write_cells(self.found)
