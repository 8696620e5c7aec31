"""A federation's rounds on tensors without values: what they hold, send and compute is that of the run itself.

Everything is the run's own: configuration, components, samples, the one training loop, the server. Backbones and
adapters have shapes alone (`hollow`), and work is cut short: of clients whose turns are alike one is carried out for
all of them, with two steps of each phase, on the largest of the batches that it would see; of evaluation the largest
batch of questions. Rounds that differ in kind are rehearsed, as `probe` finds them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pfl_platform.adapters.export import personal_adapter
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.federation.components import Federation
from pfl_platform.federation.rounds import Parts, Progress, context, drive, one_round, prepare
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Address, Cost, Outcome, Task
from pfl_platform.ledger.hollow import Account, hollow
from pfl_platform.ledger.largest import Batches, questions_of
from pfl_platform.ledger.probe import batches, rounds_of, way_of
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.ledger.stage import Hosts, ShapeStore, Shelves, TaggingDriver
from pfl_platform.plugins import PluginManager

STEPS = 2
"""Batches of a phase that are carried out: moments are there from the second on."""


@dataclass(frozen=True)
class Held:
    """What one task held when it held most. what: training or evaluation. parts: bytes, by part; see `stage.PARTS`."""

    what: str
    actor: str
    backbone: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass
class Rehearsal:
    """What was found. held: of every task that was carried out. turns: a client's costs by the number of a rehearsed
    round. server: what was no client's turn, by round. before: what came before round 0. states: bytes of a client's
    state as a file, after the last rehearsed round. kept: the same of what lies there from before round 0 and of the
    server's. exported: of the personal adapters. per_question: FLOPs of an answer, by host. stopped: why it went no
    further."""

    setup: Setup
    fed: Federation
    held: list[Held] = field(default_factory=list)
    turns: dict[int, dict[str, Cost]] = field(default_factory=dict)
    server: dict[int, list[Cost]] = field(default_factory=dict)
    before: list[Cost] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    exported: int = 0
    per_question: dict[str, float] = field(default_factory=dict)
    stopped: str = ""

    def most(self, what: str | None = None, backbone: str | None = None) -> Held | None:
        """The task that holds most, of one kind or one backbone where that is said."""
        chosen = [item for item in self.held if what in (None, item.what) and backbone in (None, item.backbone)]
        return max(chosen, key=lambda item: item.total, default=None)

    def like(self, round_index: int) -> int:
        """The rehearsed round that a round of the run is like."""
        parts, client = self.setup.parts, self.fed.clients[0]

        def way(index: int) -> Any:
            return way_of(context(self.fed, client, index), parts)

        if not self.turns:
            return 0
        alike = [index for index in self.turns if way(index) == way(round_index)] or list(self.turns)
        return max((index for index in alike if index <= round_index), default=min(alike))


def rehearse(
    config: RunConfig,
    manager: PluginManager,
    benchmark: Benchmark | None = None,
    *,
    rounds: int | None = None,
    shards: int = 1,
    device: str = "cpu",
) -> Rehearsal:
    """Rehearses a run. rounds: how many of the rounds that are rehearsed at most. device: where the run will be; on any
    but the CPU a client's state and its messages do not count, as they lie in the machine's memory.

    Raises `UserError` for a run that cannot start.
    """
    config = config.model_copy(update={"start": "", "tune": None, "budget": None})
    with _no_cache():
        setup = build(config, manager, benchmark, shapes=True)
        account = Account(apart=frozenset() if device == "cpu" else frozenset({"state"}))
        store = ShapeStore(account)
        fed, parts = setup.federation(store), setup.parts
        driver = TaggingDriver(account, shards)
        worker = setup.worker(store, driver)
        worker.place.keeper = Shelves()
        hosts = Hosts(worker, account)
        with torch.device("meta"):
            hosts.make({fed.host_of(client.client_id) for client in fed.clients} | set(parts.others(fed)))
        found = Rehearsal(setup, fed)
        stage = _Stage(worker, hosts, account, found)
        with suppress(_Stopped), hollow(account), hosts.watched():
            stage.go(fed, parts, rounds)
    return found


class _Stopped(Exception):
    """The rehearsal went no further."""


@dataclass
class _Stage:
    """Implements `Engine`: carries tasks out in short."""

    worker: Any
    hosts: Hosts
    account: Account
    found: Rehearsal
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    begun: Sequence[Address] = ()  # what lies in the store from before round 0

    def go(self, fed: Federation, parts: Parts, rounds: int | None) -> None:
        progress = self._attempt("before round 1", lambda: drive(prepare(fed, parts), self))
        self.found.before = [outcome.cost for outcome in self.outcomes.values()]
        self.begun = (*set(progress.states.values()), *set(fed.frozen.values()))  # equal ones lie there once
        self._attempt("before round 1", lambda: self._book(progress))
        for index in rounds_of(fed, parts)[:rounds]:
            self.outcomes = {}
            progress = self._attempt(
                f"in round {index + 1}", lambda p=progress, i=index: drive(one_round(fed, parts, p, i), self).progress
            )
            self._attempt(f"after round {index + 1}", lambda p=progress: self._book(p))

    def _attempt(self, where: str, run: Any) -> Any:
        try:
            return run()
        except Exception as error:  # a component may do what cannot be done without values
            self.found.stopped = f"the rehearsal stopped {where} ({type(error).__name__}: {error})"
            raise _Stopped from error

    def _book(self, progress: Progress) -> None:
        store: ShapeStore = self.worker.place.store
        self.found.states = {name: store.wire(address) for name, address in progress.states.items()}
        self.found.kept = sum(map(store.wire, (*progress.server.tensors.values(), *self.begun)))
        recipe, hosts = self.found.setup.parts.recipe(), Counter(map(self.found.fed.host_of, progress.states))
        if len(recipe.passes) == 1 and recipe.rows is None:
            self.found.exported = sum(
                count * _exported(self.worker.host(name), recipe.passes[0]) for name, count in hosts.items()
            )

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        groups: dict[str, list[Task]] = {}
        for task in tasks:
            groups.setdefault(self._form(task), []).append(task)
        done: dict[str, Outcome] = {}
        for group in groups.values():
            looks = {task.actor: Batches(task, self.hosts) for task in group}
            chosen = max(group, key=lambda task: looks[task.actor].size)
            outcome, per_unit = self._carry_out(chosen, looks[chosen.actor])
            for task in group:
                done[task.actor] = self._as_if(task, chosen, outcome, looks[task.actor].flops(per_unit))
        self._note(tasks, done)
        return {task.actor: done[task.actor] for task in tasks}

    def _form(self, task: Task) -> str:
        """Equal for tasks of which one stands for all. Two clients' amounts of data and use counts may differ."""
        kinds = sorted(batches(task.phases, task.statistics))
        up = [(share.keys.patterns, share.scope) for share in task.up]
        where = task.actor if task.stage not in ("round", "score") else ""
        return repr((task.stage, task.backbone, task.inbox, task.base, kinds, up, bool(task.score), where))

    def _carry_out(self, task: Task, look: Batches) -> tuple[Outcome, Mapping[tuple[str, ...], float]]:
        if task.recorded is not None:
            return self.worker.execute(task), {}
        meters: list[FlopMeter] = []

        def meter() -> FlopMeter:
            meters.append(FlopMeter())
            return meters[-1]

        self.worker.place.meter = meter
        short = look.short(task, STEPS)
        self.account.reset()
        outcome = self.worker.execute(replace(short, score=(), recipe=None))
        if short.phases or short.statistics:
            self.found.held.append(self._peak("training", task))
        if task.score and task.recipe is not None:
            self._question(task, outcome)
        return outcome, meters[0].per_unit if meters else {}

    def _question(self, task: Task, outcome: Outcome) -> None:
        place = self.worker.place
        chosen = questions_of(task, place, place.judge.batch_size)
        if not chosen:
            return
        asked = replace(
            task,
            state=outcome.state or task.state,
            receive=None,
            phases=(),
            statistics=(),
            up=(),
            postprocess=(),
            score=tuple(chosen),
        )
        before, place.cell_items = place.cell_items, lambda cell, data, actor, split: chosen.get(cell, ())
        self.account.reset()
        done = self.account.flops
        try:
            self.worker.execute(asked)
        finally:
            place.cell_items = before
        self.found.per_question[task.backbone] = (self.account.flops - done) / sum(map(len, chosen.values()))
        self.found.held.append(self._peak("evaluation", task))

    def _peak(self, what: str, task: Task) -> Held:
        parts = {name: size for name, size in self.account.peak.items() if size}
        return Held(what, task.actor, task.backbone, parts)

    def _as_if(self, task: Task, chosen: Task, outcome: Outcome, flops: float) -> Outcome:
        """The outcome of a task like the one that was carried out. What its own state has beside stays."""
        store = self.worker.place.store
        state = outcome.state
        if task.actor != chosen.actor and state is not None and task.state is not None:
            state = store.merged(state, task.state)
        cost = replace(outcome.cost, flops=flops)
        return replace(outcome, actor=task.actor, num_examples=task.num_examples, state=state, cost=cost)

    def _note(self, tasks: Sequence[Task], done: Mapping[str, Outcome]) -> None:
        self.outcomes |= done
        for task in tasks:
            if task.stage == "round":
                self.found.turns.setdefault(task.round_index, {})[task.actor] = done[task.actor].cost
            elif task.stage == "score":
                turns = self.found.turns.setdefault(task.round_index, {})
                cost, more = turns.get(task.actor, Cost()), done[task.actor].cost
                turns[task.actor] = replace(cost, score_payload=more.score_payload, score_wire=more.score_wire)
            elif task.stage != "prepare":
                self.found.server.setdefault(task.round_index, []).append(done[task.actor].cost)


def _exported(host: Host, mix: Mix) -> int:
    """Bytes of a personal adapter, where the mix has the form of one."""
    adapter = personal_adapter(host, mix)
    return 0 if adapter is None else sum(tensor.nbytes for tensor in adapter.tensors.values())


@contextmanager
def _no_cache() -> Iterator[None]:
    """Inside, components find nothing that other runs have kept, and can keep nothing."""
    with patch.dict(os.environ, {"PFL_CACHE": str(Path(os.devnull, "nothing"))}):
        yield
