"""Where a round's time goes, and a trace of its first steps; for `--profile`.

Nothing of this exists in a run without it. With it, what a worker works with is wrapped: losses, sources, steppers,
statistics, the store and the judge say when they begin and end. No number of the run changes. On a GPU every boundary
waits for the device, so that time is booked where it was spent; a profiled run is slower than one that is not.

Every rank of a launch has a stopwatch and a trace of its own; the first writes down what all have found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.lanes import Lanes
from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.engines.worker import Worker
from pfl_platform.federation.tasks import Engine, Outcome, Task
from pfl_platform.federation.together import Alone, Together
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.store.atomic import write_atomic
from pfl_platform.training.driver import Driver, Stepper
from pfl_platform.training.surfaces import Loss, OpenSource, Optim, Phase, Source, Statistic, View

P = ParamSpec("P")
R = TypeVar("R")

PARTS: Mapping[str, str] = {
    "data": "drawing samples and making tensors of them",
    "forward": "losses and penalties",
    "backward": "gradients",
    "optimiser": "clipping and updates",
    "swap": "reading, writing and loading what clients are made of",
    "probe": "statistics",
    "counting": "rows that FLOPs are counted on",
    "aggregation": "replies and the server's sums",
    "evaluation": "answers and their scores",
    "commit": "writing the round",
    "waiting": "for other ranks",
    "rest": "what is in none of these",
}
FOLDER, ROUNDS = "profile", "rounds.json"
"""In the run folder: the traces; and by round, for each rank, seconds by part."""
TRACED = 3
"""Updates of the trace."""


@dataclass
class Profile:
    """A stopwatch whose parts do not overlap: what is inside another part is taken off that one. device: waited for at
    every boundary, where it works beside this process. folder: of the trace. together: the processes of the run."""

    device: torch.device
    folder: Path | None = None
    together: Together = field(default_factory=Alone)
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _mark: float = 0.0
    _held: bool = False
    _trace: Any = None
    _updates: int = 0

    def __post_init__(self) -> None:
        self.together.waiting = partial(self.part, "waiting")

    @contextmanager
    def part(self, name: str, *, whole: bool = False) -> Iterator[None]:
        """Books the time inside. whole: also of parts that are inside it."""
        if self._held:
            yield
            return
        self._turn()
        self._open.append(name)
        self._held = whole
        try:
            yield
        finally:
            self._held = False
            self._turn()
            self._open.pop()

    @contextmanager
    def round(self, round_index: int) -> Iterator[None]:
        """Books a round, and writes down where its time went."""
        self.taken()
        with self.part("rest"):
            yield
        found = self.together.gathered(self.taken())
        if self.folder is not None and self.together.leads:
            file = self.folder / ROUNDS
            known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            known[str(round_index + 1)] = found
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, [json.dumps(known, indent=1).encode()])

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now

    def timed(self, name: str, function: Callable[P, R], *, whole: bool = False) -> Callable[P, R]:
        """A function whose time is booked."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.part(name, whole=whole):
                return function(*args, **kwargs)

        return call

    def taken(self) -> dict[str, float]:
        """Seconds of every part since the last time, and begins anew."""
        found = {name: self.seconds.get(name, 0.0) for name in PARTS}
        self.seconds = {}
        return found

    def begun(self) -> None:
        """A turn begins: the first one is traced."""
        if self._trace is None and self.folder is not None:
            from torch.profiler import profile, schedule, tensorboard_trace_handler

            self.folder.mkdir(parents=True, exist_ok=True)
            self._trace = profile(
                schedule=schedule(wait=0, warmup=1, active=TRACED, repeat=1),
                on_trace_ready=tensorboard_trace_handler(str(self.folder), f"rank-{self.together.rank}"),
            )
            self._trace.start()

    def updated(self) -> None:
        """A step has ended."""
        if self._trace is not None and self._updates <= TRACED:
            self._updates += 1
            self._trace.step()

    def ended(self) -> None:
        """A turn has ended, and the trace with it."""
        if self._trace is not None and self._updates <= TRACED:
            self._updates = TRACED + 1
            self._trace.stop()

    def worker(self, worker: Worker) -> Worker:
        """The worker, with all that it works with wrapped."""
        return _Worker(worker, self)

    def engine(self, engine: Engine) -> Engine:
        """The engine; what is in none of its tasks' parts is the rest."""
        return _Engine(engine, self)


class Off:
    """Stands for a profile where none is wanted."""

    def __init__(self, together: Together) -> None:
        together.waiting = nullcontext

    def part(self, name: str, *, whole: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def round(self, round_index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def worker(self, worker: Worker) -> Worker:
        return worker

    def engine(self, engine: Engine) -> Engine:
        return engine


@dataclass
class _Engine:
    inner: Engine
    profile: Profile

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        with self.profile.part("rest"):
            return self.inner.run(tasks)


class _Worker(Worker):
    def __init__(self, worker: Worker, profile: Profile) -> None:
        place = worker.place
        meter = place.meter

        def counted() -> FlopMeter:
            found = meter()
            _put(found, "measure", profile.timed("counting", found.measure, whole=True))
            return found

        judge: Any = _Delegate(place.judge, {"score": "evaluation"}, profile, whole=True)
        super().__init__(
            replace(
                place,
                store=_Delegate(place.store, {name: "swap" for name in _STORE}, profile),
                judge=judge,
                driver=_Driver(place.driver, profile),
                meter=counted,
            )
        )
        self._profile = profile

    def host(self, name: str) -> Host:
        known = name in self._hosts
        host = super().host(name)
        if not known:
            self._swaps(host, "load", "read", "load_frozen", "load_base")
            _put(host, "run", self._profile.timed("forward", host.run))  # also of passes that clients share
        return host

    def _lanes_of(self, name: str, count: int) -> Lanes:
        known = self._lanes.get(name)
        lanes = super()._lanes_of(name, count)
        if lanes is not known:
            for lane in lanes.lanes:
                self._swaps(lane, "load", "read")
        return lanes

    def _swaps(self, host: Host, *methods: str) -> None:
        for method in methods:
            _put(host, method, self._profile.timed("swap", getattr(host, method)))

    def _turn(self, task: Task, *args: Any, **options: Any) -> Any:
        profile = self._profile
        trains = bool(task.phases)
        if trains:
            profile.begun()
        changed = replace(
            task,
            phases=tuple(_phase(phase, profile) for phase in task.phases),
            statistics=tuple(_statistic(item, profile) for item in task.statistics),
        )
        found = yield from super()._turn(changed, *args, **options)
        if trains:
            profile.ended()
        return found


_STORE = ("get", "put", "put_text", "get_text", "names")


def _put(target: Any, name: str, value: Any) -> None:
    """Sets an attribute of one object, in the place of its class's method."""
    setattr(target, name, value)


class _Delegate:
    """An object some of whose methods are timed."""

    def __init__(self, inner: Any, methods: Mapping[str, str], profile: Profile, *, whole: bool = False) -> None:
        self._inner = inner
        for name, part in methods.items():
            with suppress(AttributeError):
                _put(self, name, profile.timed(part, getattr(inner, name), whole=whole))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _loss(loss: Loss, profile: Profile) -> Loss:
    def call(view: View) -> Tensor:
        encode = getattr(view, "encoded", None)
        if encode is not None:
            with profile.part("data"):
                encode()
        with profile.part("forward"):
            return loss(view)

    return call


def _phase(phase: Phase, profile: Profile) -> Phase:
    steps = tuple(
        replace(
            step,
            loss=_loss(step.loss, profile),
            penalty=None if step.penalty is None else profile.timed("forward", step.penalty),
        )
        for step in phase.steps
    )
    return replace(phase, steps=steps, data=_Source(phase.data, profile))


def _statistic(item: Statistic, profile: Profile) -> Statistic:
    found = copy(item)
    for name in ("add", "finish"):
        _put(found, name, profile.timed("probe", getattr(item, name), whole=True))
    _put(
        found, "wants", tuple(replace(want, loss=profile.timed("probe", want.loss, whole=True)) for want in item.wants)
    )
    return found


@dataclass(frozen=True)
class _Source(Source):
    inner: Source
    profile: Profile

    def describe(self) -> Mapping[str, Any]:
        return self.inner.describe()

    def open(self, private: Tensors) -> OpenSource:
        with self.profile.part("data"):
            found: Any = _Delegate(self.inner.open(private), {"batch": "data", "private": "data"}, self.profile)
        opened: OpenSource = found
        return opened


class _Driver:
    """Implements `Driver`."""

    def __init__(self, inner: Driver, profile: Profile) -> None:
        self._inner = inner
        self._profile = profile
        self.portion = inner.portion

    def total(self, value: float) -> float:
        return self._inner.total(value)

    def adopt(self, host: Host) -> None:
        self._inner.adopt(host)

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> Stepper:
        profile = self._profile
        with profile.part("swap"):
            inner = self._inner.open(name, params, optim, private)
        found: Any = _Delegate(inner, {"backward": "backward", "moments": "swap"}, profile)

        def update(index: int) -> None:
            with profile.part("optimiser"):
                inner.update(index)
            profile.updated()

        _put(found, "update", update)
        stepper: Stepper = found
        return stepper
