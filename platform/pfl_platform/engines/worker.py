"""What one worker does with one task: load, receive, train, measure, send, score. The same on every engine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_platform.adapters.heads import HEADS, first_heads
from pfl_platform.adapters.host import BASE, Host
from pfl_platform.adapters.lanes import Lanes, hindrance
from pfl_platform.adapters.surfaces import AdapterType, Keys, MixFactory, Slot, Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample, TaskData
from pfl_platform.engines.batches import CROWDED, alone_sentence, units, why_alone
from pfl_platform.engines.compiling import compile_blocks
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.evaluation.generate import CellData, Judge, to_lines
from pfl_platform.evaluation.surfaces import Cell, CellResult, Split
from pfl_platform.features.shelf import Keeper
from pfl_platform.federation.tasks import Cost, Outcome, Share, Store, Task
from pfl_platform.ledger.bytes import payload_bytes, wire_by_tensor
from pfl_platform.ledger.memory import peak_memory, reset_peak
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.rng import torch_rng
from pfl_platform.training.ahead import worth_it
from pfl_platform.training.driver import Driver, TorchDriver
from pfl_platform.training.lanes import Side, SideBySide
from pfl_platform.training.loop import Actor, Trained, Work, alone, training
from pfl_platform.training.relief import HELP, METRIC, NoRoom, Relief, out_of_memory, released
from pfl_platform.training.seen import StepObserver

LOG = "log/"
"""Scalars of a client's state under this name are shown with the round, beside its losses."""


@dataclass
class Workplace:
    """What a worker needs to know of the run; the same objects for all tasks of a process."""

    seed: int
    load: Callable[[str], Backbone]
    adapter: AdapterType
    slots: Sequence[Slot]
    mixes: Mapping[str, MixFactory]
    store: Store
    judge: Judge
    cell_data: CellData
    cell_items: Callable[[Cell, TaskData, str, Split], Sequence[Sample]]
    driver: Driver = field(default_factory=TorchDriver)
    meter: Callable[[], FlopMeter] = FlopMeter
    keeper: Keeper = field(default_factory=Keeper)
    relief: Relief = field(default_factory=Relief)
    batch: int = 1  # clients that train side by side
    compiler: str = "off"  # backend for the blocks


@dataclass(frozen=True)
class _Turn:
    """A task that has trained. begun, clock: when it began, by the clock that it is timed by."""

    task: Task
    state: dict[str, Tensor]
    inbox: Tensors
    done: Trained
    begun: float
    clock: Callable[[], float]


class Worker:
    """Executes tasks, one after another or side by side. Keeps one `Host` per backbone."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self._hosts: dict[str, Host] = {}
        self._lanes: dict[str, Lanes] = {}
        self._crowded = False  # whether memory ran out with one row of each client that trained side by side

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            place = self.place
            self._hosts[name] = Host(place.load(name), place.adapter, place.slots, place.mixes, keeper=place.keeper)
            place.driver.adopt(self._hosts[name])
            self._hosts[name].load(self._first_head(name))
            if place.compiler != "off":
                compile_blocks(self._hosts[name], place.compiler)
        return self._hosts[name]

    def _first_head(self, name: str) -> Tensors:
        return first_heads(self.place.load(name), self.place.seed, self.place.slots)

    def execute(self, task: Task, observe: StepObserver | None = None) -> Outcome:
        if task.recorded is not None:
            return Outcome(task.actor, task.state, None, task.num_examples, {}, cost=task.recorded)
        host, meter = self.host(task.backbone), self.place.meter()
        return self._ended(alone(self._turn(task, host, meter, observe, time.perf_counter)), host, meter)

    def units(self, tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
        """The tasks, in parts that are carried out at once; see `pfl_platform.engines.batches`."""
        return units(tasks, self._size, self.place.load)

    @property
    def _size(self) -> int:
        return self.place.batch if self.place.batch < 2 or self.place.driver.portion.of == 1 else 1

    def alone_because(self, unit: Sequence[Task]) -> str:
        """Why tasks that were to be carried out side by side are not; empty where they are."""
        if self.place.batch < 2 or not any(task.phases for task in unit):
            return ""
        if self._size < 2:
            return "several ranks share a client"
        if self._crowded:
            return CROWDED
        if len(unit) == 1:
            return why_alone(unit[0], self.place.load) or f"no other client trains on '{unit[0].backbone}'"
        return hindrance(self.host(unit[0].backbone))

    def together(self, tasks: Sequence[Task], observe: Callable[[Task], StepObserver | None]) -> list[Outcome]:
        """Outcomes of a unit's tasks."""
        if len(tasks) == 1 or self.alone_because(tasks):
            return [self.execute(task, observe(task)) for task in tasks]
        try:
            return self._side_by_side(tasks, observe)
        except NoRoom:
            self._crowded = True
            self._lanes.clear()
            self.place.relief.tell(alone_sentence(CROWDED))
        released()
        return [self.execute(task, observe(task)) for task in tasks]

    def _lanes_of(self, name: str, count: int) -> Lanes:
        """Room for so many clients on a backbone."""
        if name not in self._lanes or len(self._lanes[name].lanes) < count:
            self._lanes[name] = Lanes(self.host(name), count)
        return self._lanes[name]

    def _side_by_side(self, tasks: Sequence[Task], observe: Callable[[Task], StepObserver | None]) -> list[Outcome]:
        host, lanes = self.host(tasks[0].backbone), self._lanes_of(tasks[0].backbone, len(tasks))
        sides = [Side[_Turn](number, meter=self.place.meter()) for number in range(len(tasks))]
        works = [
            self._turn(task, lanes.lanes[side.lane], side.meter, observe(task), side.clock)
            for task, side in zip(tasks, sides, strict=True)
        ]
        turns, outcomes = SideBySide[_Turn](lanes).carry_out(sides, works), []
        for turn, side in zip(turns, sides, strict=True):
            with side.at_work():
                if turn.task.score:
                    host.load(turn.state)
                outcomes.append(self._ended(turn, host, side.meter))
        return outcomes

    def _turn(
        self,
        task: Task,
        host: Host,
        meter: FlopMeter,
        observe: StepObserver | None,
        clock: Callable[[], float],
    ) -> Work[_Turn]:
        """What comes of a task's training, as work that somebody carries out. host: where its actor trains. meter,
        clock: what it takes."""
        begun, place = clock(), self.place
        reset_peak(host.backbone.device)
        host.load_frozen(task.frozen, place.store.get)
        host.load_base(task.base, place.store.get)
        state: dict[str, Tensor] = place.store.get(task.state) if task.state else {}
        inbox: Tensors = place.store.get(task.inbox) if task.inbox else {}
        if task.receive is not None:
            state = dict(task.receive(state, inbox))
        host.load({**self._first_head(task.backbone), **state})
        for other in task.others:
            if other != task.backbone:
                self.host(other).load(self._first_head(other))  # whatever client was there before
        done = yield from self._train(task, host, state, inbox, observe, meter, clock)
        live = [key for key in state if key in host.params]
        if any(key.startswith("frozen/") for key in live):
            host.frozen_address = None  # this task may have changed what others share
        return _Turn(task, {**state, **host.read(live), **done.private}, inbox, done, begun, clock)

    def _ended(self, turn: _Turn, host: Host, meter: FlopMeter) -> Outcome:
        """Sends, scores and books. host: with the actor's params loaded."""
        place, task, state, inbox, done = self.place, turn.task, turn.state, turn.inbox, turn.done
        sent_tensors = self._outgoing(task, state, done, inbox)
        sent = place.store.put(sent_tensors) if sent_tensors else None
        scored, heads, head_payload = self._score(task, host, state)
        down_payload = payload_bytes(inbox) + task.base_bytes
        down = wire_by_tensor(inbox) if task.inbox else {}
        if task.base_bytes:
            down[BASE] = task.base_bytes
        up = wire_by_tensor(sent_tensors) if sent else {}
        down_wire, head_wire = sum(down.values()), sum(heads.values())
        evaluating = task.stage == "score"
        seconds = turn.clock() - turn.begun
        cost = Cost(
            seconds=seconds,
            train_seconds=done.seconds,
            steps=done.steps,
            flops=meter.total,
            flops_formula=meter.formula,
            peak_memory=peak_memory(host.backbone.device),
            up_payload=payload_bytes(sent_tensors),
            up_wire=sum(up.values()),
            down_payload=0 if evaluating else down_payload,
            down_wire=0 if evaluating else down_wire,
            head_payload=head_payload,
            head_wire=head_wire,
            score_payload=down_payload if evaluating else 0,
            score_wire=down_wire if evaluating else 0,
        )
        metrics = {f"loss/{name}": sum(values) / len(values) for name, values in done.losses.items() if values}
        if place.relief.parts > 1:
            metrics[METRIC] = float(place.relief.parts)
        metrics |= {key.removeprefix(LOG): float(value) for key, value in state.items() if key.startswith(LOG)}
        return Outcome(
            actor=task.actor,
            state=place.store.put(state) if state else None,
            sent=sent,
            num_examples=task.num_examples,
            metrics=metrics,
            scores={result.cell.key: result.score for result in scored},
            predictions=place.store.put_text(to_lines(scored)) if scored else None,
            cost=cost,
            messages={
                way: place.store.put_text(json.dumps(tensors, sort_keys=True))
                for way, tensors in {"up": up, "score" if evaluating else "down": down, "head": heads}.items()
                if tensors
            },
        )

    def _train(
        self,
        task: Task,
        host: Host,
        state: Tensors,
        inbox: Tensors,
        observe: StepObserver | None,
        meter: FlopMeter,
        clock: Callable[[], float],
    ) -> Work[Trained]:
        if not task.phases and not task.statistics:
            return Trained()

        def rng(*parts: str | int) -> torch.Generator:
            return torch_rng(self.place.seed, task.stage, task.round_index, task.actor, *parts)

        def declared(name: str) -> Host:
            if name not in names:
                raise UserError(
                    f"A loss or statistic of {task.actor} runs the backbone '{name}', which its task does not declare "
                    "in `others`."
                )
            return host if name == task.backbone else self.host(name)

        names = dict.fromkeys((task.backbone, *task.others))
        slots = [slot.name for slot in self.place.slots]
        refs = {**state, **inbox}
        place = self.place
        ahead = place.batch == 1 and worth_it(host.backbone.device)  # clients side by side have their rows read in one
        actor = Actor(task.actor, task.backbone, declared, rng, place.driver, refs, meter, clock, place.relief, ahead)
        try:
            with ExitStack() as stack:
                for name in names:
                    stack.enter_context(meter.watching(declared(name), slots))
                if any(want.keys.names(BASE) for item in task.statistics for want in item.wants):
                    stack.enter_context(host.dense())
                return (yield from training(actor, task.phases, task.statistics, state, observe))
        except Exception as error:
            if not isinstance(error, RunStopped) and not out_of_memory(error):
                raise
            if not isinstance(error, RunStopped):
                error = RunStopped(f"Out of memory: {task.actor} does not fit; {HELP}")
            where = f"round {task.round_index + 1}" if task.stage == "round" else f"stage '{task.stage}'"
            raise type(error)(f"{str(error).rstrip('.')} ({where}).") from None

    def _outgoing(self, task: Task, state: Tensors, done: Trained, inbox: Tensors) -> dict[str, Tensor]:
        """What leaves: the declared keys of the state and of what statistics send, and nothing else."""
        if not task.up:
            return {}
        allowed = Keys(*(pattern for share in task.up for pattern in share.keys.patterns))
        sent: Tensors = allowed.of({**state, **done.sent})
        if task.send is not None:
            sent = task.send(sent)
            if strangers := undeclared(list(sent), task.up):
                raise UserError(f"The update of {task.actor} holds '{strangers[0]}', which may not leave the client.")
        for number, change in enumerate(task.postprocess):
            address = (self.place.seed, "postprocess", task.round_index, task.actor, number)
            sent = change(sent, inbox, lambda *parts, at=address: torch_rng(*at, *parts))
        return dict(sent)

    def _score(self, task: Task, host: Host, state: Tensors) -> tuple[list[CellResult], dict[str, int], int]:
        """Results in the order of the cells, and what the heads weigh that were brought in for them: serialised, by
        tensor, and by the formula."""
        if not task.score or task.recipe is None:
            return [], {}, 0
        if task.recipe.blend is not None:
            blended = task.recipe.blend.params(state, None)
            host.load(blended)
            host.lay_base(blended)
        found: dict[Cell, CellResult] = {}
        payload, wire = 0, Counter[str]()
        lenders = dict.fromkeys(task.heads.get(cell.owner) for cell in task.score)
        for lender in sorted(lenders, key=lambda address: address is not None):  # with the actor's own head first
            if lender is not None:
                head = self.place.store.get(lender, HEADS)
                host.load(head)
                payload += payload_bytes(head)
                wire.update(wire_by_tensor(head))
            cells = []
            for cell in task.score:
                if task.heads.get(cell.owner) == lender:
                    data = self.place.cell_data(cell)
                    cells.append((cell, data, self.place.cell_items(cell, data, task.actor, task.split)))
            found |= {result.cell: result for result in self.place.judge.score(host, task.recipe, cells, state)}
        return [found[cell] for cell in task.score if cell in found], dict(wire), payload


def undeclared(keys: Sequence[str], shares: Sequence[Share]) -> list[str]:
    """Keys that no share covers; a server refuses a message that has any."""
    return [key for key in keys if not any(key in share.keys for share in shares)]
