"""What methods contribute to the one training loop: steps grouped into phases, and statistics.

A method never writes a loop, an optimiser step or a backward call. The same surfaces serve clients, a server that
trains, alignment before round 1 and pretraining.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Site, Tensors
from pfl_platform.backbones import Backbone, Encoded
from pfl_platform.data import Sample
from pfl_platform.errors import UserError


@dataclass(frozen=True)
class Output:
    """What one forward pass gives.

    scores: logits of every position, (rows, positions, vocabulary), or of those alone that predict an answer token, (P,
        vocabulary), row after row: read them as `logits` and as `answers`.
    taps: module path -> its input.
    summed: sums a number over all parts of the micro-batch, where several processes share it.
    apart: each row is a micro-batch of its own, that goes through the backbone beside others.
    """

    scores: Tensor
    encoded: Encoded
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    summed: Callable[[float], float] | None = None
    apart: bool = False

    @property
    def logits(self) -> Tensor:
        """Of every position, (rows, positions, vocabulary). Raises `UserError` where nobody asked for them."""
        if self.scores.dim() != 3:
            raise UserError(
                "A loss reads the logits of all positions, and only those that predict answers were computed; let it "
                "read Output.answers, or ask forward(..., whole=True)."
            )
        return self.scores

    @cached_property
    def answers(self) -> Tensor:
        """Logits that predict the answer tokens `encoded.answers.tokens`, (P, vocabulary)."""
        if self.scores.dim() != 3:
            return self.scores
        return self.scores.flatten(0, 1).index_select(0, self.encoded.answers.places)

    def by_row(self, values: Tensor) -> Tensor:
        """Sums of values (P,) of the answer tokens over each row, (rows,)."""
        found = self.encoded.answers
        return values.new_zeros(found.shape[0]).index_add(0, found.rows, values)

    def per_supervised(self, counts: Tensor, least: int = 0) -> Tensor:
        """Rows over supervised positions of the whole micro-batch, as a scalar; where rows stand apart `1 / counts`,
        one per row. `counts` (rows,): how many positions of each row of this part are supervised; they are taken to be
        `least` at least."""
        if self.apart:
            return 1 / counts.clamp(min=least)
        supervised = counts.sum().clamp(min=least)
        if self.summed is None:
            return counts.shape[0] / supervised
        return supervised.new_tensor(self.summed(counts.shape[0]), dtype=torch.float32) / self.summed(float(supervised))


class View(Protocol):
    """All that a loss or a statistic sees of one micro-batch.

    samples: the raw samples. params: key -> live tensor of the adapters that are loaded. refs: the actor's state as it
    was when training began and the task's inbox, for anchors, targets and strengths. step: index in the phase.
    gradients: what a statistic's `wants` asked for, by name; the view then has one sample. notes: what an earlier step
    of the phase has left for the later ones, which see the same micro-batch; empty at its first step.
    """

    @property
    def samples(self) -> Sequence[Sample]: ...

    @property
    def step(self) -> int: ...

    @property
    def params(self) -> Mapping[str, Tensor]: ...

    @property
    def refs(self) -> Tensors: ...

    @property
    def gradients(self) -> Mapping[str, Tensors]: ...

    @property
    def notes(self) -> dict[str, Tensor]: ...

    def backbone(self, name: str | None = None) -> Backbone:
        """A backbone of the task by name; the client's own by default."""
        ...

    def forward(
        self,
        mix: Mix,
        *,
        grad: bool = True,
        train: bool = True,
        taps: Sequence[str] = (),
        backbone: str | None = None,
        whole: bool = False,
    ) -> Output:
        """One forward pass under a mix. `taps` are module paths whose inputs are wanted. Another backbone than the
        client's own is always run bare and without gradient. `whole`: with the logits of every position, which may be
        the largest tensor of a pass; else those that predict answers are enough."""
        ...


Loss: TypeAlias = Callable[[View], Tensor]
"""View -> loss per row, shape (rows,); the loop takes the mean over the batch's rows."""

Penalty: TypeAlias = Callable[[Mapping[str, Tensor], Tensors], "Tensor | None"]
"""(live params, `View.refs`) -> scalar added once per optimiser step, or None for nothing."""


@dataclass(frozen=True)
class Optim:
    """AdamW for one step of a phase.

    lr: learning rate. lr_scale: (keys, factor of lr) pairs, first match first. moments: whether Adam's
    moments survive to the client's next round. clip: largest gradient norm over the step's params; 0 is off.
    schedule: `constant`, or `linear` / `cosine` to zero over the run's total steps after `warmup` steps. reset: keys
    whose moments do not survive even where the others' do, because a download replaces them.
    """

    lr: float
    lr_scale: tuple[tuple[Keys, float], ...] = ()
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0
    moments: Literal["keep", "reset"] = "keep"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    total_steps: int = 0
    first_step: int = 0
    reset: Keys = field(default_factory=Keys)

    def rate(self, key: str) -> float:
        for keys, factor in self.lr_scale:
            if key in keys:
                return self.lr * factor
        return self.lr


@dataclass(frozen=True)
class Step:
    """One optimiser step on one batch: which keys train, under which loss."""

    train: Keys
    loss: Loss
    optim: Optim
    penalty: Penalty | None = None
    name: str = "step"


class Source(ABC):
    """Where a phase's batches come from. Addressed: the same (private state, step) gives the same batch."""

    @abstractmethod
    def open(self, private: Tensors) -> OpenSource:
        """Begins reading; `private` holds what an earlier `OpenSource.private` of this actor returned."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """JSON that names the data and the order; part of the task's hash."""


class OpenSource(Protocol):
    def batch(self, step: int) -> Sequence[Sample]:
        """The samples of a step; called once per step, in order."""
        ...

    def private(self) -> Tensors:
        """What the actor has to keep for the next time (for example use counts), under keys `memory/...`."""
        ...


After: TypeAlias = Callable[[dict[str, Tensor], Tensors], Mapping[str, Tensor]]
"""(params that were trained, `View.refs`) -> params to keep in their place."""


@dataclass(frozen=True)
class Phase:
    """`amount` batches; every step of a phase sees the same batch. `micro_batch` rows per forward (0: the whole
    batch), by length (`Sample.length`) where `by_length` says so. `first`: number of batches that earlier phases of the
    task have taken from the same data; this one goes on there, in the data and in the learning rate's schedule.
    `after`: replaces the params that were trained, and may set others."""

    name: str
    steps: tuple[Step, ...]
    amount: int
    data: Source
    micro_batch: int = 0
    after: After | None = None
    first: int = 0
    by_length: bool = False

    def describe(self) -> Mapping[str, Any]:
        told = {"name": self.name, "amount": self.amount, "data": self.data.describe(), "micro": self.micro_batch}
        return {**told, **{name: getattr(self, name) for name in ("first", "by_length") if getattr(self, name)}}


@dataclass(frozen=True)
class Want:
    """A gradient that a statistic asks for: of `loss` on one sample at a time, with respect to some keys. The mean over
    samples of a function of gradients (of their squares, say) is not that function of the batch's gradient.

    Keys `base/site/W` are the dense weights of the adapted maps; asking for them takes a float32 copy of each.

    apart: whether `loss` may be given many samples at once: what it says of a row depends on other rows through
    `Output.per_supervised` alone, and it draws no random numbers. Then one pass finds the gradients of all samples of
    a batch, where adapter and backbone allow it (see `training.gradients`); else it is given one at a time."""

    name: str
    keys: Keys
    loss: Loss
    apart: bool = False


@dataclass(frozen=True)
class Planned:
    """A client of a planned federation, whose backbones have shapes and no values.

    load: backbones by name; None is the client's own. sites: its adapted maps. readers: for each site the first one
    that reads the same input. values: `site/part` -> how many values, of one slot's params that train. answers: answer
    tokens of a sample.
    """

    load: Callable[[str | None], Backbone]
    sites: tuple[Site, ...]
    readers: tuple[int, ...]
    values: Mapping[str, int]
    answers: int

    @staticmethod
    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """One without values."""
        return torch.empty(shape, dtype=dtype, device="meta")


class Statistic(ABC):
    """Something measured on data without training.

    With `every = m` it looks at every m-th batch of the phases (steps 0, m, 2m ...), after the batch's optimiser
    steps. With `every = None` it makes a pass of its own over `data`, `amount` batches, after the phases.

    With `wants`, `add` is called once per sample, and finds the sample's gradients in `view.gradients`.

    by_sample: whether it sends something of each sample of its `data`, so that what it sends is as long as these. It
    must look at logits and labels alone then: a plan shows it all samples, but makes few of the passes.
    """

    name: str
    every: int | None = None
    data: Source | None = None
    amount: int = 0
    wants: tuple[Want, ...] = ()
    by_sample: bool = False

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        """What `finish` would send from a planned client: tensors with a shape, a dtype and no values. It is asked so
        that costs can be planned at real backbones' shapes."""
        return {}

    @abstractmethod
    def add(self, acc: Any, view: View) -> Any:
        """Takes in one batch; `acc` is None at first. Runs without gradient."""

    @abstractmethod
    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        """(what to send, what to keep), as keys `<name>/...`. `private` is what was kept the last time;
        `rng(*parts)` is a generator at this task's address."""
