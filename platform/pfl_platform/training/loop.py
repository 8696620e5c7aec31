"""The one training loop: clients, servers, alignment and pretraining all run through `train`.

The loop is a generator. It asks for every micro-batch to be taken forward and back, and is told the loss; so one actor
can train by itself (`alone`), or several in step with each other (see `pfl_platform.training.lanes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.data import Sample
from pfl_platform.errors import RunStopped
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.training import gradients
from pfl_platform.training.ahead import Batch, batches
from pfl_platform.training.driver import Driver, Stepper
from pfl_platform.training.relief import Relief, out_of_memory, released
from pfl_platform.training.seen import Losses, StepObserver
from pfl_platform.training.surfaces import Loss, Phase, Statistic, Step
from pfl_platform.training.view import BatchView, Rng

T = TypeVar("T")


@dataclass(frozen=True)
class Actor:
    """Who trains: its name, where its tensors live, where its randomness comes from, and who takes the steps."""

    name: str
    backbone: str
    hosts: Callable[[str], Host]
    rng: Rng
    driver: Driver
    refs: Tensors = field(default_factory=dict)
    flops: FlopMeter | None = None
    clock: Callable[[], float] = time.perf_counter
    relief: Relief = field(default_factory=Relief)
    ahead: bool = False


@dataclass(frozen=True)
class Micro:
    """A micro-batch of a batch of `rows`, to be taken forward and back. backward: of the stepper that it is for."""

    view: BatchView
    loss: Loss
    rows: int
    backward: Callable[[Tensor], None]

    def share(self, per_row: Tensor) -> Tensor:
        """Its part of the batch's mean loss, from its rows' losses."""
        loss = per_row.sum() / self.rows
        return loss if self.view.weight == 1 else loss * self.view.weight

    def alone(self) -> Tensor:
        """Takes it forward and back by itself; returns its part of the batch's mean loss."""
        loss = self.share(self.loss(self.view))
        self.backward(loss)
        return loss.detach()


@dataclass(frozen=True)
class Update:
    """The optimiser's step `index`, when all of a batch's gradients are there."""

    stepper: Stepper
    index: int

    def alone(self) -> None:
        self.stepper.update(self.index)


Answer: TypeAlias = Tensor | None
"""What a work is sent: the loss of a micro-batch, a scalar on whatever device; nothing for an update."""

Work: TypeAlias = Generator[Micro | Update, Answer, T]
"""Asks for micro-batches and updates; is sent answers, or what has gone wrong; returns a result."""


def alone(work: Work[T]) -> T:
    """Does a work's micro-batches and updates as they are asked for."""
    with closing(work):
        try:
            asked = next(work)
            while True:
                try:
                    loss = asked.alone()
                except Exception as error:
                    asked = work.throw(error)
                else:
                    asked = work.send(loss)
        except StopIteration as stop:
            found: T = stop.value
            return found


@dataclass
class Trained:
    """What training leaves behind. private: what the actor keeps (moments, use counts, statistics); sent: what
    statistics send; losses: phase name -> batch loss of every step."""

    private: dict[str, Tensor] = field(default_factory=dict)
    sent: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return sum(len(values) for values in self.losses.values())


def train(
    actor: Actor,
    phases: Sequence[Phase],
    statistics: Sequence[Statistic] = (),
    private: Tensors | None = None,
    observe: StepObserver | None = None,
) -> Trained:
    """Runs phases over their batches; statistics watch. The adapters are the ones that are loaded in the actor's host.

    Raises `RunStopped` at a loss that is not finite, naming actor, phase and step.
    """
    return alone(training(actor, phases, statistics, private, observe))


def training(
    actor: Actor,
    phases: Sequence[Phase],
    statistics: Sequence[Statistic] = (),
    private: Tensors | None = None,
    observe: StepObserver | None = None,
) -> Work[Trained]:
    """`train`, as work that somebody carries out."""
    kept = dict(private or {})
    result = Trained()
    accs: dict[str, Any] = {}
    begun = actor.clock()
    for phase in phases:
        yield from _run_phase(actor, phase, statistics, kept, result, accs, observe)
    for statistic in statistics:
        if statistic.every is None and statistic.data is not None:
            source = statistic.data.open(kept)
            for index in range(statistic.amount):
                view = _view(actor, source.batch(index), index, statistic.name)
                accs[statistic.name] = _add(actor, statistic, accs.get(statistic.name), view)
        send, keep = statistic.finish(
            accs.get(statistic.name), kept, lambda *parts, name=statistic.name: actor.rng(name, *parts)
        )
        result.sent.update(send)
        result.private.update(keep)
    result.seconds = actor.clock() - begun
    return result


def _run_phase(
    actor: Actor,
    phase: Phase,
    statistics: Sequence[Statistic],
    kept: Mapping[str, Tensor],
    result: Trained,
    accs: dict[str, Any],
    observe: StepObserver | None,
) -> Work[None]:
    host = actor.hosts(actor.backbone)
    names = [f"{phase.name}.{step.name}" for step in phase.steps]
    params = [host.select(step.train) for step in phase.steps]
    steppers = [
        actor.driver.open(name, chosen, step.optim, kept)
        for name, chosen, step in zip(names, params, phase.steps, strict=True)
    ]
    # A phase that goes on in the data goes on in its use counts; one that starts where others did sees what they saw.
    source = phase.data.open({**kept, **result.private} if phase.first else kept)
    found = result.losses.setdefault(phase.name, [])

    def batch(index: int) -> Batch:
        samples = source.batch(phase.first + index)
        return samples, _views(actor, phase, samples, index)

    with (
        Losses(actor.name, phase.name, phase.amount, actor.driver, found, observe) as losses,
        closing(batches(batch, phase.amount, ahead=actor.ahead)) as turns,
    ):
        for index, (samples, whole) in enumerate(turns):
            views = actor.relief.split(whole)
            dry: list[BatchView] = []
            for step, stepper, chosen in zip(phase.steps, steppers, params, strict=True):
                if len(phase.steps) > 1:
                    host.select(step.train)
                _measure_step(actor, phase, step, views, dry, chosen)
                loss, views = yield from _fitting_step(actor, phase, step, views, samples, stepper)
                _book_step(actor, phase, step, views)
                losses.add(index, loss, last=step is phase.steps[-1])
                yield Update(stepper, phase.first + index)
            for statistic in statistics:
                if statistic.every is not None and index % statistic.every == 0:
                    as_it_is = len(views) == 1 and actor.driver.portion.of == 1
                    view = views[0] if as_it_is else _view(actor, samples, index, phase.name)
                    accs[statistic.name] = _add(actor, statistic, accs.get(statistic.name), view)
    _refuse_broken(actor, phase, params)
    for stepper in steppers:
        result.private.update(stepper.moments())
    result.private.update(source.private())
    if phase.after is not None:
        live = sorted({key for chosen in params for key in chosen})
        host.load(phase.after(host.read(live), actor.refs))


def _refuse_broken(actor: Actor, phase: Phase, params: Sequence[Mapping[str, Tensor]]) -> None:
    """A finite loss can have a gradient that is not; such params must not reach the server."""
    tensors = {key: tensor for chosen in params for key, tensor in chosen.items()}
    fine = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist() if tensors else []
    for key, good in zip(tensors, fine, strict=True):
        if not good:
            raise RunStopped(
                f"'{key}' of {actor.name} is not finite after phase '{phase.name}' of {phase.amount} local steps: "
                "lower its learning rate or look at its data."
            )


def _fitting_step(
    actor: Actor, phase: Phase, step: Step, views: list[BatchView], samples: Sequence[Sample], stepper: Stepper
) -> Work[tuple[list[Tensor], list[BatchView]]]:
    """A step, taken anew with smaller micro-batches where memory runs out; what the batch's mean loss is the sum of,
    and what it was taken in."""
    index = views[0].step
    while (loss := (yield from _one_step(step, views, len(samples), stepper.backward))) is None:
        stepper.drop()
        released()
        whole = actor.driver.portion.of == 1
        actor.relief.halve(f"{actor.name} in phase '{phase.name}'", views, alone=whole)
        views = actor.relief.split(_views(actor, phase, samples, index))
    return loss, views


def _one_step(
    step: Step, views: Sequence[BatchView], rows: int, backward: Callable[[Tensor], None]
) -> Work[list[Tensor] | None]:
    """Forward and backward over the micro-batches; returns what the batch's mean loss is the sum of, a penalty
    included, or None where memory ran out."""
    losses: list[Tensor] = []
    for view in views:
        try:
            loss = yield Micro(view, step.loss, rows, backward)
            assert loss is not None
            losses.append(loss)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
    penalty = step.penalty(views[0].params, views[0].refs) if step.penalty is not None else None
    if penalty is not None:
        backward(penalty)
        losses.append(penalty.detach())
    return losses


def _add(actor: Actor, statistic: Statistic, acc: Any, view: BatchView) -> Any:
    if actor.flops is not None:
        kind = ("statistic", statistic.name)
        if not actor.flops.known(kind):
            row = _view(actor, view.samples[:1], view.step, statistic.name, dry=True)
            actor.flops.measure(kind, lambda: row.work, lambda: _look(actor, statistic, None, row))
    found = _look(actor, statistic, acc, view)
    if actor.flops is not None:
        actor.flops.book(("statistic", statistic.name), view.work)
    return found


def _look(actor: Actor, statistic: Statistic, acc: Any, view: BatchView) -> Any:
    """Shows a batch to a statistic, or sample after sample with the gradients that it wants."""
    if not statistic.wants:
        with torch.no_grad():
            return statistic.add(acc, view)

    def view_of(samples: Sequence[Sample], number: int) -> BatchView:
        return _view(actor, samples, view.step, statistic.name, number, dry=view.dry)

    return gradients.shown(actor.hosts(actor.backbone), statistic, acc, view.samples, view_of)


def _measure_step(
    actor: Actor,
    phase: Phase,
    step: Step,
    views: Sequence[BatchView],
    rows: list[BatchView],
    chosen: Mapping[str, Tensor],
) -> None:
    """Counts what a dry run of a step on one row costs, once. `rows` holds that row from a batch's first step to its
    last, so that a step finds there what the one before has left."""
    if actor.flops is None:
        return
    kind = ("step", phase.name, step.name)
    if not actor.flops.known(kind):
        if not rows:
            rows.append(_view(actor, views[0].samples[:1], views[0].step, phase.name, dry=True))
        (row,) = rows

        def dry() -> None:
            torch.autograd.grad(step.loss(row).sum(), list(chosen.values()), allow_unused=True)

        actor.flops.measure(kind, lambda: row.work, dry)


def _book_step(actor: Actor, phase: Phase, step: Step, views: Sequence[BatchView]) -> None:
    """Books a step at what its dry run has cost for its work."""
    if actor.flops is not None:
        for view in views:
            actor.flops.book(("step", phase.name, step.name), view.work)


def _view(
    actor: Actor, samples: Sequence[Sample], index: int, purpose: str, micro: int = 0, *, dry: bool = False
) -> BatchView:
    return BatchView(
        actor.hosts,
        actor.backbone,
        samples,
        step=index,
        rng=lambda *parts: actor.rng(purpose, micro, *parts),
        refs=actor.refs,
        dry=dry,
    )


def _views(actor: Actor, phase: Phase, samples: Sequence[Sample], index: int) -> list[BatchView]:
    """The micro-batches, or this process's rows of each. Who has none of a micro-batch takes part with a row that
    counts nothing, since those who share a batch go through it in step."""
    size, portion = phase.micro_batch or len(samples), actor.driver.portion
    if phase.by_length:
        samples = sorted(samples, key=lambda sample: sample.length, reverse=True)
    found = []
    for start in range(0, len(samples), size):
        micro = samples[start : start + size]
        rows = portion.rows(micro)
        number = start // size * portion.of + portion.index
        found.append(_view(actor, rows or micro[:1], index, phase.name, number))
        if portion.of > 1:
            # Gradients are averaged over those who share the batch, where the batch's loss is a sum over its rows.
            found[-1].share(portion.of if rows else 0, actor.driver.total)
    return found
