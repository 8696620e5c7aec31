"""Tasks, outcomes and programs: what the federation asks an engine to do.

A task names its tensors by address in the store, never by value, so that a task is small, can be sent to another
process and can be hashed: outcomes are cached by the hash, which is what makes a killed run go on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Scope, Tensors, shared
from pfl_platform.evaluation.surfaces import Cell, InferenceRecipe, Split
from pfl_platform.training.surfaces import Phase, Statistic

T = TypeVar("T")
Address: TypeAlias = str
"""Content address of a set of named tensors in the store."""


@dataclass(frozen=True)
class Share:
    """One line of the contract: keys that travel, and with whom they may be combined. What is not declared is
    private."""

    keys: Keys
    scope: Scope = "all"


def shares_of(slot: str, part: str = "*") -> tuple[Share, ...]:
    """The contract for a slot's params, or for one part of them: combined over everybody where they mean the same
    everywhere, else within a backbone.

    >>> [share.keys.patterns for share in shares_of("local", "A")]
    [('local/block*/A',), ('local/layer*/A',)]
    """
    ending = "" if part == "*" else f"/{part}"
    scopes: tuple[Scope, ...] = ("all", "backbone")
    return tuple(
        Share(Keys(*(pattern + ending for pattern in shared(slot, scope).patterns)), scope) for scope in scopes
    )


@dataclass(frozen=True)
class Cost:
    """What one task cost. Bytes: `*_payload` is the formula (values x item size), `*_wire` the serialised length.

    A task whose outcome was there from before costs what it cost then, seconds included: an outcome is kept with its
    cost, and a component that keeps results of its own says what they cost in `Task.recorded`. So a run that was
    killed, or that found an alignment of an earlier run, states the costs of one that computed everything; only
    seconds, and the peak on a CPU, are the machine's.
    """

    seconds: float = 0.0
    train_seconds: float = 0.0
    steps: int = 0
    flops: float = 0.0  # counted by the profiler on sampled batches, scaled by tokens; see `pfl_platform.ledger.flops`
    flops_formula: float = 0.0  # of every forward pass that was made, on every backbone
    peak_memory: int = 0  # bytes: device peak, or the process's resident peak on a CPU
    up_payload: int = 0
    up_wire: int = 0
    down_payload: int = 0
    down_wire: int = 0
    head_payload: int = 0  # task heads of other clients, brought in to answer their tasks; part of no message
    head_wire: int = 0
    score_payload: int = 0  # replies that came down for evaluation alone; they count in no `down_*`
    score_wire: int = 0


@dataclass(frozen=True)
class Task:
    """One actor's turn: a client's, the server's, or an alignment's.

    state: the actor's tensors. frozen: tensors shared by all actors on this backbone. base: a delta of the backbone
    that is on in every forward pass; base_bytes: what it took to bring it there. inbox: the message for this turn.
    receive: applied to (state, inbox) before training. up: what may leave; send: the form in which it does. others:
    further backbones that losses and statistics run. split: whose samples are scored. heads: owner of cells -> state
    whose task head answers them, where it is not the actor's own.
    recorded: the task was done in another run, which left `state`, at this cost; nothing is computed, all is booked.
    """

    actor: str
    stage: str
    round_index: int
    backbone: str
    state: Address | None = None
    frozen: Address | None = None
    base: Address | None = None
    base_bytes: int = 0
    inbox: Address | None = None
    receive: Callable[[dict[str, Tensor], Tensors], Mapping[str, Tensor]] | None = None
    phases: tuple[Phase, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    up: tuple[Share, ...] = ()
    send: Callable[[Tensors], Mapping[str, Tensor]] | None = None
    others: tuple[str, ...] = ()
    postprocess: tuple[Callable[[Tensors, Tensors, Any], Tensors], ...] = ()
    score: tuple[Cell, ...] = ()
    recipe: InferenceRecipe | None = None
    split: Split = "test"
    heads: Mapping[str, Address] = field(default_factory=dict)
    num_examples: int = 0
    recorded: Cost | None = None
    salt: Mapping[str, Any] = field(default_factory=dict)  # whatever else decides the outcome

    def digest(self) -> str:
        """Names everything that decides the outcome; two tasks with equal digests have equal outcomes in one run."""
        text = json.dumps(
            {
                "actor": self.actor,
                "stage": self.stage,
                "round": self.round_index,
                "backbone": self.backbone,
                "tensors": [self.state, self.frozen, self.base, self.inbox],
                "phases": [phase.describe() for phase in self.phases],
                "statistics": [[item.name, item.every, item.amount] for item in self.statistics],
                "others": list(self.others),
                "up": [[list(share.keys.patterns), share.scope] for share in self.up],
                "score": [[cell.key for cell in self.score], self.split],
                "heads": dict(self.heads),
                "recorded": self.recorded is not None,
                "salt": dict(self.salt),
            },
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What came of a task; JSON but for the tensors, which lie in the store."""

    actor: str
    state: Address | None
    sent: Address | None
    num_examples: int
    metrics: Mapping[str, float]
    scores: Mapping[str, float] = field(default_factory=dict)  # cell key -> 0 to 100
    predictions: Address | None = None  # file of predictions in the store
    cost: Cost = field(default_factory=Cost)
    messages: Mapping[str, Address] = field(default_factory=dict)
    """"up", "down", "score" or "head" (as in `Cost`) -> a JSON text in the store: bytes that travelled, by tensor."""

    @property
    def new_state(self) -> Address:
        """The state after a task that trains, receives, or measures something that it keeps."""
        assert self.state is not None
        return self.state

    @property
    def message(self) -> Address:
        """What a task sent whose `up` names something that is there."""
        assert self.sent is not None
        return self.sent


Program: TypeAlias = Generator[Sequence[Task], Mapping[str, Outcome], T]
"""Yields tasks (one per actor), receives outcomes by actor, returns a result. Pure between yields."""


class Engine(Protocol):
    """Where tasks run. Never decides what they do."""

    def run(self, tasks: Sequence[Task]) -> Mapping[str, Outcome]:
        """Outcomes by actor, in the order of `tasks`."""
        ...


class Store(Protocol):
    """Named tensors by content address."""

    def put(self, tensors: Tensors) -> Address:
        """Keeps a copy; equal contents get equal addresses."""
        ...

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        """The tensors (or those that `keys` covers), on the CPU, sorted by key."""
        ...

    def names(self, address: Address) -> tuple[str, ...]:
        """All keys at an address, sorted; no values are read."""
        ...

    def put_text(self, text: str) -> Address:
        """Keeps a text (predictions as JSON lines)."""
        ...

    def get_text(self, address: Address) -> str: ...

    def cached(self, digest: str) -> Outcome | None:
        """The outcome of a task that ended before, if any."""
        ...

    def cache(self, digest: str, outcome: Outcome) -> None: ...

    def expect(self, addresses: Iterable[Address]) -> None:
        """Told what is asked for next: a store may read it meanwhile."""
        ...

    def flush(self) -> None:
        """Waits until everything that was put stays, whatever becomes of this process. Raises what went wrong."""
        ...
