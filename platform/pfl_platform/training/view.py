"""The batch as losses and statistics see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix, Tensors
from pfl_platform.backbones import Backbone, Encoded
from pfl_platform.data import Sample
from pfl_platform.training.surfaces import Output

Rng = Callable[..., torch.Generator]


@dataclass(frozen=True)
class Call:
    """A forward pass that a view was asked for. number: of the passes that it was asked for before."""

    number: int
    mix: Mix
    grad: bool
    train: bool
    taps: tuple[str, ...]
    backbone: str
    whole: bool = False


Relay = Callable[[Call], Output]
"""Answers in a view's place; see `pfl_platform.training.lanes`."""


class BatchView:
    """Implements `View` for one micro-batch. A batch is encoded once per backbone, whatever number of forwards
    follows.

    dry: it is counted and thrown away, and shows pictures to all of the backbone, so that a count does not depend on
    what was kept of them.
    """

    def __init__(
        self,
        hosts: Callable[[str], Host],
        name: str,
        samples: Sequence[Sample],
        *,
        step: int,
        rng: Rng,
        refs: Tensors | None = None,
        gradients: Mapping[str, Tensors] | None = None,
        dry: bool = False,
    ) -> None:
        self._hosts = hosts
        self.name = name  # of the client's own backbone
        self.samples = samples
        self.step = step
        self.dry = dry
        self.refs: Tensors = refs or {}
        self.gradients: Mapping[str, Tensors] = gradients or {}
        self.notes: dict[str, Tensor] = {}
        self.weight = 1  # of its loss
        self._whole: Callable[[float], float] | None = None
        self._apart = False
        self.taken_in = 1  # into how many parts micro-batches were split when it was made; see `relief`
        self._rng = rng
        self._encoded: dict[str, Encoded] = {}
        self._reading: Future[Encoded] | None = None
        self.forwards = 0
        self.whole = False  # whether the logits of all positions were asked for
        self.relay: Relay | None = None
        self.part: Encoded | None = None  # of a pass that several clients share, its own rows

    def stand_apart(self) -> None:
        """Makes each of its rows a micro-batch of its own."""
        self._apart = True

    def share(self, weight: int, total: Callable[[float], float]) -> None:
        """Makes it a part of a micro-batch that several processes share: its loss weighs `weight`, and `total` sums a
        number over all of them."""
        self.weight = weight
        self._whole = lambda value: total(value if weight else 0.0)

    def parts(self, count: int) -> list[BatchView]:
        """The same rows as so many micro-batches (at most one for each row), which are normalised like the whole."""
        size = -(-len(self.samples) // count)
        if size >= len(self.samples):
            return [self]
        pieces = [self.samples[start : start + size] for start in range(0, len(self.samples), size)]
        found = []
        for number, samples in enumerate(pieces):
            part = BatchView(
                self._hosts,
                self.name,
                samples,
                step=self.step,
                rng=lambda *names, number=number: self._rng("part", number, *names),
                refs=self.refs,
            )
            part._whole = self._as_if_whole(part)
            found.append(part)
        return found

    def _as_if_whole(self, part: BatchView) -> Callable[[float], float]:
        """What a number of a part is for the whole, by the rows of both, or, for supervised positions, by theirs."""

        def whole(value: float) -> float:
            if isinstance(value, int):  # a number of rows
                return value * len(self.samples) / len(part.samples)
            own, all_ = part.encoded().supervised, self.encoded().supervised
            return value * all_ / own if own else float(max(1, all_))  # rows that teach nothing divide nothing by zero

        return whole

    @property
    def params(self) -> Mapping[str, Tensor]:
        return self._hosts(self.name).params

    def backbone(self, name: str | None = None) -> Backbone:
        return self._hosts(name or self.name).backbone

    def encoded(self, name: str | None = None) -> Encoded:
        """The batch as a backbone of the task reads it."""
        chosen = name or self.name
        if chosen not in self._encoded:
            host = self._hosts(chosen)
            if chosen == self.name and self._reading is not None:
                self._encoded[chosen] = host.seen(self._reading.result()).to(host.backbone.device)
            else:
                self._encoded[chosen] = host.encode(self.samples, pixels=self.dry)
        return self._encoded[chosen]

    def read(self, reader: Executor) -> None:
        """Has the batch read, as the client's own backbone reads it, before anybody asks for it."""
        self._reading = reader.submit(self._hosts(self.name).read_batch, self.samples, pixels=self.dry)

    def wait(self) -> None:
        """Until what `read` has begun is done. Raises what went wrong in it."""
        if self._reading is not None:
            self._reading.result()

    @property
    def tokens(self) -> int:
        """Of the batch, as the client's own backbone reads it."""
        return (self.part or self.encoded()).tokens

    @property
    def work(self) -> float:
        """Of the batch, as the client's own backbone reads it, by what was asked of it so far: see `Host.work`."""
        return self._hosts(self.name).work(self.part or self.encoded(), whole=self.whole)

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
        other = backbone is not None and backbone != self.name
        number = self.forwards
        self.forwards += 1
        self.whole |= whole
        chosen = backbone or self.name
        call = Call(number, {} if other else mix, grad and not other, train and not other, tuple(taps), chosen, whole)
        return self.relay(call) if self.relay is not None else self.passed(call)

    def rng(self, call: Call) -> Callable[[str], torch.Generator] | None:
        """Where a pass's dropout comes from at each site."""
        return (lambda site: self._rng("forward", self.step, call.number, site)) if call.train else None

    def passed(self, call: Call) -> Output:
        """What a call gives, by a pass of these rows alone."""
        host, encoded = self._hosts(call.backbone), self.encoded(call.backbone)
        with ExitStack() as stack:
            seen = stack.enter_context(tapping(host, call.taps))
            stack.enter_context(host.mixing(call.mix, host.masks(encoded.inputs), self.rng(call)))
            stack.enter_context(torch.set_grad_enabled(call.grad))
            scores = host.scores(encoded, whole=call.whole)
        return self.output(scores, encoded, seen)

    def output(self, scores: Tensor, encoded: Encoded, taps: Mapping[str, Tensor] | None = None) -> Output:
        """What a pass has given for these rows."""
        return Output(scores, encoded, taps or {}, self._whole, self._apart)


@contextmanager
def tapping(host: Host, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What goes into some modules in the passes made inside, by path; of several passes the last."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        if taps:
            stack.enter_context(host.eager())
        for path in taps:
            stack.callback(host.backbone.module(path).register_forward_pre_hook(_keep(seen, path)).remove)
        yield seen


def _keep(seen: dict[str, Tensor], path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[path] = args[0]

    return hook
