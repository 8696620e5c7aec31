"""Preparation and one round, as programs. Reads like the pseudocode of a federated method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.data import ClientData
from pfl_platform.engines.worker import undeclared
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Cell, InferenceRecipe
from pfl_platform.federation import heads
from pfl_platform.federation.cells import cells_due, cells_for, evaluated, own_cells
from pfl_platform.federation.cohorts import select
from pfl_platform.federation.collecting import collect
from pfl_platform.federation.components import (
    Aggregator,
    Base,
    ClientContext,
    Component,
    Federation,
    Objective,
    Personalizer,
    Postprocessor,
    ServerState,
)
from pfl_platform.federation.starting import Start, start_of
from pfl_platform.federation.tasks import Address, Engine, Outcome, Program, Share, Task
from pfl_platform.training.streams import ClientStream, Epochs, Pooled, begun
from pfl_platform.training.surfaces import Optim, Phase, Statistic

T = TypeVar("T")

OWN = "own tasks on "
"""Prefix of the actor that scores a bare backbone on its clients' own cells."""


@dataclass(frozen=True)
class Parts:
    """The components of a run."""

    objective: Objective
    aggregator: Aggregator
    personalizer: Personalizer | None = None
    postprocessors: tuple[Postprocessor, ...] = ()

    @property
    def components(self) -> tuple[Component, ...]:
        extra = () if self.personalizer is None else (self.personalizer,)
        return (self.objective, self.aggregator, *extra, *self.postprocessors)

    @property
    def up(self) -> tuple[Share, ...]:
        """Keys that leave a client."""
        return self.objective.up + self.aggregator.asks

    def measured(self, ctx: ClientContext) -> tuple[Statistic, ...]:
        """What the personalizer wants to know before a client is evaluated."""
        return () if self.personalizer is None else self.personalizer.statistics(ctx, self.objective)

    def beside(self, fed: Federation) -> tuple[str, ...]:
        """Backbones that are run at clients beside their own."""
        return tuple(dict.fromkeys(self.objective.others(fed) + self.aggregator.runs(fed)))

    def others(self, fed: Federation) -> tuple[str, ...]:
        """Backbones that are run beside those of the clients, anywhere."""
        return tuple(dict.fromkeys(self.beside(fed) + self.aggregator.others(fed)))

    def recipe(self) -> InferenceRecipe:
        if self.personalizer is not None:
            return self.personalizer.recipe(self.objective)
        return InferenceRecipe((self.objective.mix,))


@dataclass(frozen=True)
class Progress:
    """Where a federation stands between rounds: everything that the next round reads."""

    states: Mapping[str, Address]
    server: ServerState
    heads: Mapping[str, Address] = field(default_factory=dict)  # backbone -> shared task head
    # client id -> the state that was evaluated last, where evaluation itself has taken in or measured something
    evaluated: Mapping[str, Address] = field(default_factory=dict)
    bases: Mapping[str, Base] = field(default_factory=dict)  # client id -> what its backbone had on in its last turn


@dataclass(frozen=True)
class RoundResult:
    progress: Progress
    outcomes: Mapping[str, Outcome]


def drive(program: Program[T], engine: Engine) -> T:
    """Runs a program to its end on an engine."""
    try:
        tasks = next(program)
        while True:
            tasks = program.send(engine.run(tasks))
    except StopIteration as stop:
        result: T = stop.value
        return result


def prepare(fed: Federation, parts: Parts) -> Program[Progress]:
    """Before round 0: shared frozen params of every backbone, each component's own preparation, first states."""
    hosts = {fed.host_of(client.client_id): client.client_id for client in fed.clients}

    def frozen() -> dict[str, Address]:
        found = {name: fed.adapter.frozen(fed.load(name), fed.seed) for name in sorted({*fed.backbones, *hosts})}
        return {name: fed.store.put(shared) for name, shared in found.items() if shared}

    fed.frozen.update(fed.together.once(frozen))
    for component in parts.components:
        replaced = yield from fed.together.led(component.prepare(fed))
        fed.frozen.update(replaced)

    start = cache(lambda: start_of(fed))  # read once, and only where the run is led

    def started() -> dict[str, Address]:
        found = start()
        return {} if found is None else {name: fed.store.put(tensors) for name, tensors in found.frozen.items()}

    fed.frozen.update(fed.together.once(started))
    for name, client_id in hosts.items():  # adapters of one signature mean the same, on whatever host
        backbone = fed.backbone_of[client_id]
        if backbone in fed.frozen and fed.adapter_of(client_id).signature() == fed.adapter.signature():
            fed.frozen[name] = fed.frozen[backbone]

    def first() -> tuple[dict[str, Any], dict[str, Address]]:
        server = parts.aggregator.init(fed)
        states = {}
        for client in fed.clients:
            head = heads.initial(fed, client.client_id, parts.objective.slots)
            states[client.client_id] = fed.store.put({**first_params(fed, parts, client, start()), **head})
        return vars(server), states

    server, states = fed.together.once(first)
    return Progress(states, ServerState(**server))


def first_params(fed: Federation, parts: Parts, client: ClientData, start: Start | None) -> dict[str, Tensor]:
    """A client's params before its first round, without a task head."""
    initial = parts.objective.initial(context(fed, client, 0))
    return initial if start is None else start.lay(fed, parts.objective, client.client_id, initial)


def baseline(fed: Federation) -> Program[dict[str, dict[str, float]]]:
    """The bare backbones before any training. Returns client id -> cell key -> score.

    Clients of a backbone share the work: one task for all their own cells, one for everybody's cells, each on the items
    that the trained models will be scored on.
    """
    recipe, options = InferenceRecipe(({},)), fed.config.evaluation
    tasks = []
    for name in fed.backbones:
        owners = [client for client in fed.clients if fed.backbone_of[client.client_id] == name]
        own = tuple(cell for client in owners for cell in own_cells(client))
        rest = cells_for(fed, None) if options.others else ()
        if options.unseen:
            rest += tuple(Cell("", task.name) for task in fed.benchmark.unseen)
        rest = heads.measurable(fed, name, rest)
        tasks.append(
            Task(OWN + name, "baseline", 0, name, score=own, recipe=recipe, split=options.split, salt=fed.salt)
        )
        if rest:
            tasks.append(replace(tasks[-1], actor=f"others {name}", score=rest))
    outcomes = yield tasks
    scores: dict[str, dict[str, float]] = {}
    for client in fed.clients:
        name = fed.backbone_of[client.client_id]
        others = outcomes[f"others {name}"].scores if f"others {name}" in outcomes else {}
        mine = {cell.key: outcomes[OWN + name].scores.get(cell.key) for cell in own_cells(client)}
        scores[client.client_id] = {**others, **{key: value for key, value in mine.items() if value is not None}}
    return scores


def one_round(fed: Federation, parts: Parts, progress: Progress, round_index: int) -> Program[RoundResult]:
    """select -> reply -> local training -> absorb, and evaluation when it is due."""
    tasks = [client_task(fed, parts, progress, client, round_index) for client in select(fed, round_index)]
    outcomes = yield tasks
    after = yield from absorbed(fed, parts, progress, outcomes, round_index)
    if evaluated(fed, round_index):
        if parts.recipe().when == "replied":
            waiting = [reply_task(fed, parts, after, client, round_index) for client in fed.clients]
        else:
            absent = [client for client in fed.clients if client.client_id not in outcomes]
            waiting = [score_task(fed, parts, after, client, round_index) for client in absent]
            waiting += [score_later(fed, parts, task, after.states) for task in tasks if task.recipe is None]
        if waiting:
            scored = yield waiting
            outcomes = {**outcomes, **{name: heads.joined(outcomes.get(name), scored[name]) for name in scored}}
            seen = {name: item.state for name, item in scored.items() if item.state is not None}
            after = replace(after, evaluated=seen)
    return RoundResult(after, outcomes)


def absorbed(
    fed: Federation, parts: Parts, progress: Progress, outcomes: Mapping[str, Outcome], round_index: int
) -> Program[Progress]:
    """Where the federation stands once the server has taken in what the cohort has sent."""

    def taken_in() -> Program[tuple[dict[str, Any], Mapping[str, Address]]]:
        cohort = [client for client in fed.clients if client.client_id in outcomes]
        updates, shared = heads.split(fed, collect(fed, parts, cohort, outcomes), progress.heads)
        server = yield from parts.aggregator.absorb(fed, progress.server, updates, round_index)
        return vars(server), shared

    server, shared = yield from fed.together.led(taken_in())
    trained = {name: outcome.state for name, outcome in outcomes.items() if outcome.state is not None}
    bases = {name: base for name in outcomes if (base := dispatched_base(fed, parts, progress, name)) is not None}
    states = {**progress.states, **trained}
    return Progress(states, ServerState(**server), shared, bases={**progress.bases, **bases})


def context(fed: Federation, client: ClientData, round_index: int) -> ClientContext:
    config, training = fed.config, fed.config.training
    pool = Pooled([task.train for task in client.tasks])
    passes = Epochs(pool, training.batch_size, fed.seed, f"client {client.client_id}")
    steps = passes.steps(config.local_epochs) if config.local_epochs else config.local_steps
    first, total = round_index * steps, config.rounds * steps
    optim = Optim(
        lr=training.lr,
        lr_scale=tuple((Keys(pattern), factor) for pattern, factor in training.lr_scale.items()),
        weight_decay=training.weight_decay,
        clip=training.clip,
        schedule=training.schedule,
        warmup=training.warmup or math.ceil(training.warmup_ratio * total),
        total_steps=total,
        first_step=first,
    )
    stream = ClientStream(client, config.stream, fed.seed, training.batch_size, first, total)
    in_passes = config.local_epochs or config.stream.protocol == "passes"
    source = replace(passes, first=first) if in_passes else stream
    tasks = client.tasks if config.local_epochs else begun(client, config.stream.protocol, first + steps, total)
    return ClientContext(fed, client, round_index, steps, source, optim, tasks)


def dispatched(
    fed: Federation, parts: Parts, progress: Progress, ctx: ClientContext, take: heads.Receive
) -> dict[str, Any]:
    """What the server sends to a client now, as fields of the client's task; `take` is what the objective does with
    it."""
    name = ctx.client.client_id

    def made() -> tuple[bool, bool, Address | None]:
        reply = parts.aggregator.reply(fed, progress.server, name) if parts.objective.downloads(ctx) else {}
        strangers = undeclared(list(reply), parts.objective.down)
        if strangers:
            raise UserError(f"The aggregator's reply holds '{strangers[0]}', which the objective does not take in.")
        common = heads.received(fed, progress.heads, name)
        return bool(reply), bool(common), fed.store.put({**reply, **common}) if reply or common else None

    replied, common, inbox = fed.together.once(made)
    receive = take if replied else None
    base, before = dispatched_base(fed, parts, progress, name), progress.bases.get(name)
    return {
        "base": base.address if base else None,
        "base_bytes": (base.sent if base else 0) - (before.sent if before else 0),
        "inbox": inbox,
        "receive": heads.receiving(receive) if common else receive,
    }


def dispatched_base(fed: Federation, parts: Parts, progress: Progress, name: str) -> Base | None:
    """The delta that a client's backbone has on from its next turn on."""
    return parts.aggregator.base(fed, progress.server, fed.host_of(name))


def base_of(fed: Federation, parts: Parts, progress: Progress, name: str) -> Address | None:
    """The delta that is on in a client's personal model: that of its last turn, on which its adapter was trained, or
    the newest where a recipe evaluates the reply."""
    replied = parts.recipe().when == "replied"
    base = dispatched_base(fed, parts, progress, name) if replied else progress.bases.get(name)
    return None if base is None else base.address


def trains(ctx: ClientContext, parts: Parts) -> tuple[Phase, ...]:
    """What a client trains in its turn: a head that trains goes with every step."""
    objective = parts.objective
    return heads.trained(ctx.fed, ctx.client.client_id, objective.phases(ctx), objective.slots)


def measures(ctx: ClientContext, parts: Parts) -> tuple[Statistic, ...]:
    """What is measured at a client in its turn: for its objective, the aggregator, and the evaluation that is due."""
    found = parts.objective.statistics(ctx) + parts.aggregator.statistics(ctx, parts.objective)
    return found + (parts.measured(ctx) if scored_at_once(ctx, parts) else ())


def scored_at_once(ctx: ClientContext, parts: Parts) -> bool:
    """Whether a client is evaluated in its turn, as it has trained."""
    return evaluated(ctx.fed, ctx.round_index) and parts.recipe().when == "trained"


def client_task(fed: Federation, parts: Parts, progress: Progress, client: ClientData, round_index: int) -> Task:
    """One client's turn. The reply is made here, when the client is dispatched."""
    name = client.client_id
    ctx = context(fed, client, round_index)
    cells = cells_due(fed, client, round_index) if scored_at_once(ctx, parts) else ()
    later = bool(heads.borrowed(fed, name, cells, progress.states))  # when the others' heads are trained, too
    return Task(
        actor=name,
        stage="round",
        round_index=round_index,
        backbone=fed.host_of(name),
        state=progress.states[name],
        frozen=fed.frozen.get(fed.host_of(name)),
        phases=trains(ctx, parts),
        statistics=measures(ctx, parts),
        up=(parts.up if parts.objective.uploads(ctx) else ()) + heads.shares(fed, name, parts.objective.slots),
        send=parts.objective.send,
        others=parts.beside(fed),
        postprocess=tuple(item.apply for item in parts.postprocessors),
        score=cells,
        recipe=parts.recipe() if cells and not later else None,
        split=fed.config.evaluation.split,
        num_examples=client.num_examples,
        salt=fed.salt,
        **dispatched(fed, parts, progress, ctx, parts.objective.receive),
    )


def score_task(fed: Federation, parts: Parts, progress: Progress, client: ClientData, round_index: int) -> Task:
    """Evaluation of a client that did not train in this round: its adapter, on the backbone of its last turn."""
    name, states = client.client_id, progress.states
    backbone = fed.host_of(name)
    cells = cells_due(fed, client, round_index)
    return Task(
        actor=name,
        stage="score",
        round_index=round_index,
        backbone=backbone,
        state=states[name],
        frozen=fed.frozen.get(backbone),
        statistics=parts.measured(context(fed, client, round_index)),
        base=base_of(fed, parts, progress, name),
        score=cells,
        recipe=parts.recipe(),
        split=fed.config.evaluation.split,
        heads=heads.borrowed(fed, name, cells, states),
        salt=fed.salt,
    )


def reply_task(fed: Federation, parts: Parts, progress: Progress, client: ClientData, round_index: int) -> Task:
    """Evaluation of what the server now has for a client: its next reply, taken in and not trained on. The reply is
    booked as `score_payload` and `score_wire`; should the client be dispatched next, it is sent again, and booked."""
    task = score_task(fed, parts, progress, client, round_index)
    ctx = context(fed, client, round_index + 1)
    return replace(task, **dispatched(fed, parts, progress, ctx, parts.objective.replied))


def personal(fed: Federation, parts: Parts, progress: Progress, name: str) -> dict[str, Tensor]:
    """The tensors of a client's personal model after the last round, blended where the recipe says how."""
    state, blend = taken_in(fed, parts, progress, name, fed.config.rounds), parts.recipe().blend
    return state if blend is None else {**state, **blend.params(state, None)}


def taken_in(fed: Federation, parts: Parts, progress: Progress, name: str, rounds: int) -> dict[str, Tensor]:
    """A client's state after so many rounds, as it is evaluated: with the server's reply, where a recipe wants that."""
    if name in progress.evaluated:
        return fed.store.get(progress.evaluated[name])
    state = fed.store.get(progress.states[name])
    if parts.recipe().when == "trained":
        return state
    client = next(client for client in fed.clients if client.client_id == name)
    sent = dispatched(fed, parts, progress, context(fed, client, rounds), parts.objective.replied)
    return dict(sent["receive"](state, fed.store.get(sent["inbox"]))) if sent["receive"] is not None else state


def score_later(fed: Federation, parts: Parts, task: Task, states: Mapping[str, Address]) -> Task:
    """Evaluation of a client that trained in this round, with the heads that the others have now."""
    return replace(
        task,
        stage="score",
        state=states[task.actor],
        base_bytes=0,
        inbox=None,
        receive=None,
        phases=(),
        statistics=(),
        up=(),
        postprocess=(),
        recipe=parts.recipe(),
        heads=heads.borrowed(fed, task.actor, task.score, states),
    )
