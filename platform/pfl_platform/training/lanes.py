"""Several clients trained in step with each other: their micro-batches go through the backbone together.

Every client has a training loop of its own (see `pfl_platform.training.loop`). When all of them have asked for a
micro-batch, their rows are stacked, one forward pass takes them through the backbone, each row through its own client's
adapters, and one backward pass takes back the sum of the clients' losses. Losses are those of the clients' own rows,
computed by their own code: a loss is called, and where it asks for a pass it is left; once all passes are there it is
called again and finds its own. So a loss is called once more than it has passes, with the same answers each time.

A client that is done is not there any more; one that stands alone trains as it would by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from pfl_platform.adapters.lanes import Lanes
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.training.driver import TorchStepper, update_all
from pfl_platform.training.loop import Answer, Micro, Update, Work
from pfl_platform.training.stacking import Stack, common_mix, kind, stacked
from pfl_platform.training.surfaces import Output
from pfl_platform.training.view import Call

T = TypeVar("T")


class Clock:
    """The seconds that one of several clients takes: while it is at work itself, and its share of what all do."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._spent + (0.0 if self._since is None else time.perf_counter() - self._since)

    def add(self, seconds: float) -> None:
        self._spent += seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._since = self(), None


class _Asked(BaseException):
    """Leaves a loss that asks for a pass. No `Exception`: a loss must not take it for an error."""


@dataclass
class Side(Generic[T]):
    """One client among those that train side by side. lane: where its tensors are. asked: what it waits for."""

    lane: int
    clock: Clock = field(default_factory=Clock)
    meter: FlopMeter = field(default_factory=FlopMeter)
    asked: Micro | Update | None = None
    result: T | None = None

    def begin(self, work: Work[T]) -> None:
        self._work = work
        self._go(lambda: next(work))

    def go_on(self, answer: Answer | Exception) -> None:
        """With a micro-batch's loss, or what has gone wrong in it."""
        if isinstance(answer, Exception):
            self._go(lambda: self._work.throw(answer))
        else:
            self._go(lambda: self._work.send(answer))

    def alone(self) -> Answer | Exception:
        """Does what it waits for by itself."""
        assert self.asked is not None
        with self.at_work():
            try:
                return self.asked.alone()
            except Exception as error:
                return error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, passes are this client's."""
        self.meter.rows = slice(None)
        try:
            with self.clock.running():
                yield
        finally:
            self.meter.rows = None

    def _go(self, step: Callable[[], Micro | Update]) -> None:
        with self.at_work():
            try:
                self.asked = step()
            except StopIteration as stop:
                self.asked, self.result = None, stop.value


@dataclass(frozen=True)
class _Passed:
    """A pass that was made: by which lanes, and the leaves that hold their gradients."""

    lanes: Sequence[int]
    leaves: Mapping[str, Tensor]


class _Turn:
    """A client's loss of one micro-batch, on its way through the passes that it asks for."""

    def __init__(self, side: Side[Any]) -> None:
        assert isinstance(side.asked, Micro)
        self.side = side
        self.micro = side.asked
        self.asked: Call | None = None
        self.loss: Tensor | None = None
        self.error: Exception | None = None
        self.answers: dict[int, Output] = {}
        self._start, self._notes = self.micro.view.forwards, dict(self.micro.view.notes)

    @property
    def answer(self) -> Tensor | Exception:
        """What the client is told."""
        if self.error is not None or self.loss is None:
            return self.error or RuntimeError("a loss has come to no end")
        return self.loss.detach()

    def go(self) -> None:
        """Calls the loss with the answers that are there."""
        view = self.micro.view
        view.forwards, view.relay, self.asked = self._start, self._relay, None
        view.notes = dict(self._notes)
        try:
            with self.side.at_work():
                self.loss = self.micro.share(self.micro.loss(view))
        except _Asked:
            pass
        except Exception as error:
            self.error = error
        finally:
            view.relay = None

    def pass_alone(self) -> None:
        assert self.asked is not None
        try:
            with self.side.at_work():
                self.answers[self.asked.number] = self.micro.view.passed(self.asked)
        except Exception as error:
            self.error = error

    def _relay(self, call: Call) -> Output:
        if call.number not in self.answers:
            if call.backbone != self.micro.view.name:  # bare, and nobody's adapters are in it
                self.answers[call.number] = self.micro.view.passed(call)
            else:
                self.asked = call
                raise _Asked
        return self.answers[call.number]


class SideBySide(Generic[T]):
    """Carries out the work of several clients on the lanes of a host."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._stack: Stack | None = None

    def carry_out(self, sides: Sequence[Side[T]], works: Sequence[Work[T]]) -> list[T]:
        """The results, in the order of the works. What goes wrong in one of them ends all."""
        try:
            for side in sides:
                side.meter.rows = None
            for side, work in zip(sides, works, strict=True):
                side.begin(work)
            while waiting := [side for side in sides if side.asked is not None]:
                # Whose gradients are there takes its step first, so that all come to the next micro-batch together.
                stepping = [side for side in waiting if isinstance(side.asked, Update)]
                answers = self._updates(stepping) if stepping else self._answers(waiting)
                for side, answer in zip(stepping or waiting, answers, strict=True):
                    side.go_on(answer)
            return [cast(T, side.result) for side in sides]
        finally:
            self._stack = None
            for work in works:
                work.close()

    def _updates(self, stepping: Sequence[Side[T]]) -> Sequence[Answer | Exception]:
        """Takes the optimiser steps that they wait for."""
        updates = [side.asked for side in stepping if isinstance(side.asked, Update)]
        steppers = [update.stepper for update in updates if isinstance(update.stepper, TorchStepper)]
        if len(updates) == 1 or len(steppers) < len(updates):
            return [side.alone() for side in stepping]
        begun = time.perf_counter()
        update_all(steppers, [update.index for update in updates])
        for side in stepping:
            side.clock.add((time.perf_counter() - begun) / len(stepping))
        return [None] * len(stepping)

    def _answers(self, waiting: Sequence[Side[T]]) -> Sequence[Answer | Exception]:
        """Takes what they wait for forward and back."""
        if len(waiting) == 1:
            return [waiting[0].alone()]
        begun = time.perf_counter()
        before = [side.clock() for side in waiting]
        turns = [_Turn(side) for side in waiting]
        passes: list[_Passed] = []
        asking = turns
        while asking:
            for turn in asking:
                turn.go()
            asking = [turn for turn in asking if turn.asked is not None]
            for group in self._groups(asking):
                self._pass(group, passes)
            asking = [turn for turn in asking if turn.error is None]
        self._back([turn for turn in turns if turn.loss is not None], passes)
        # What was done for all at once is everybody's by the tokens of its rows.
        own = sum(side.clock() - start for side, start in zip(waiting, before, strict=True))
        tokens = [max(1, turn.micro.view.tokens) for turn in turns]
        for side, count in zip(waiting, tokens, strict=True):
            side.clock.add((time.perf_counter() - begun - own) * count / sum(tokens))
        return [turn.answer for turn in turns]

    def _groups(self, asking: Sequence[_Turn]) -> list[list[_Turn]]:
        """Those whose passes can be one."""
        found: dict[tuple[object, ...], list[_Turn]] = {}
        for turn in asking:
            assert turn.asked is not None
            found.setdefault(kind(turn.asked, self._lanes.lanes[turn.side.lane].params), []).append(turn)
        return list(found.values())

    def _pass(self, group: Sequence[_Turn], passes: list[_Passed]) -> None:
        """One pass for a group, or one for each where something inside the backbone is looked at."""
        calls = [turn.asked for turn in group if turn.asked is not None]
        if len(group) == 1 or calls[0].taps:
            for turn in group:
                turn.pass_alone()
            return
        try:
            for turn, call, output in zip(group, calls, self._stacked(group, calls, passes), strict=True):
                turn.answers[call.number] = output
        except Exception as error:
            for turn in group:
                turn.error = error

    def _stacked(self, group: Sequence[_Turn], calls: Sequence[Call], passes: list[_Passed]) -> list[Output]:
        lanes, views = self._lanes, [turn.micro.view for turn in group]
        if self._stack is None or not self._stack.of(views):  # else of the step before on the same batch
            self._stack = stacked(lanes.host, views)
        stack, numbers = self._stack, [turn.side.lane for turn in group]
        parts = stack.who(lanes.host, calls, [lanes.lanes[number].params for number in numbers])
        mix = common_mix([call.mix for call in calls], [len(view.samples) for view in views], lanes.backbone.device)
        encoded = stack.encoded
        try:
            for turn, part in zip(group, stack.rows, strict=True):
                turn.side.meter.rows = part
            with ExitStack() as inside:
                leaves = inside.enter_context(lanes.mixing(numbers, mix, lanes.host.masks(encoded.inputs), parts))
                inside.enter_context(torch.set_grad_enabled(calls[0].grad))
                scores = lanes.host.scores(encoded, whole=calls[0].whole)
        finally:
            for turn in group:
                turn.side.meter.rows = None
        passes.append(_Passed(numbers, leaves))
        for view, own in zip(views, stack.parts, strict=True):
            view.part = own
        return stack.outputs(scores)

    def _back(self, turns: Sequence[_Turn], passes: Sequence[_Passed]) -> None:
        losses = [turn.loss for turn in turns if turn.loss is not None]
        try:
            if losses:
                turns[0].micro.backward(torch.stack(losses).sum())
            for done in passes:
                self._lanes.hand_out(done.lanes, done.leaves)
        except Exception as error:
            for turn in turns:
                turn.error = error
