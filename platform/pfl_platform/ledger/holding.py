"""What a local step holds until its way back: found where methods are traced, and priced at real shapes.

A loss is asked once per step, and what it computes with gradient is held until the backward pass that follows. So the
passes that are made inside one call of a loss are held together: one for most methods, two where a loss combines the
outputs of two models.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pfl_platform.adapters.host import Host
from pfl_platform.backbones import IGNORE
from pfl_platform.federation.tasks import Task
from pfl_platform.ledger.sampling import FlopMeter, Pass
from pfl_platform.training.surfaces import Loss, View
from pfl_platform.training.view import BatchView


@dataclass(frozen=True)
class Graph:
    """What one call of a loss holds. passes: those with gradient, each as often as it was made. beside: bytes that the
    loss itself holds, per answer token and entry of the vocabulary."""

    passes: tuple[Pass, ...]
    beside: float = 0.0


@dataclass
class Saved:
    """Bytes that autograd saves for the way back, each storage once; those in `apart` are held anyhow. scores: what is
    left out, tensors whose last dimensions are these."""

    apart: Set[int] = frozenset()
    scores: tuple[int, ...] = ()
    counting: bool = True
    _seen: dict[int, Tensor] = field(default_factory=dict)  # kept alive, as the address of a dead one is used again

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._seen.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        with saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        left_out = self.scores and tuple(tensor.shape[-len(self.scores) :]) == self.scores
        if self.counting and not left_out and (name := storage(tensor)) not in self.apart:
            self._seen[name] = tensor.detach()
        return tensor


def storage(tensor: Tensor) -> int:
    """Names the storage of a tensor, with values or without."""
    return int(tensor.untyped_storage()._cdata)


def held_by(host: Host) -> set[int]:
    """Storages of a host's weights and adapters."""
    return {storage(tensor) for tensor in (*host.backbone.model.parameters(), *host.params.values())}


def watched(task: Task, host: Host, meter: FlopMeter, graphs: set[Graph]) -> Task:
    """A task whose losses put down what they hold."""

    def beside(loss: Loss) -> Loss:
        def call(view: View) -> Tensor:
            saved = Saved(held_by(host))
            before, passes = dict(meter.tokens), sum(meter.passes.values())
            hooks = [
                host.backbone.model.register_forward_pre_hook(lambda *_: setattr(saved, "counting", False)),
                host.backbone.model.register_forward_hook(lambda *_: setattr(saved, "counting", True)),
            ]
            try:
                with saved.watching():
                    found = loss(view)
            finally:
                for hook in hooks:
                    hook.remove()
            if sum(meter.passes.values()) > passes:  # not a dry row of the meter's
                assert isinstance(view, BatchView)
                row = view.encoded()
                kinds = [
                    kind
                    for kind, tokens in meter.tokens.items()
                    for _ in range((tokens - before.get(kind, 0)) // max(1, row.tokens))
                    if kind.gradient
                ]
                entries = int((row.labels != IGNORE).sum()) * vocabulary(host)
                graphs.add(Graph(tuple(kinds), saved.bytes / max(1, entries)))
            return found

        return call

    phases = tuple(
        replace(phase, steps=tuple(replace(step, loss=beside(step.loss)) for step in phase.steps))
        for phase in task.phases
    )
    return replace(task, phases=phases)


def vocabulary(host: Host) -> int:
    """How many logits a position has."""
    head = host.backbone.module(host.backbone.head)
    return int(head.weight.shape[0])  # type: ignore[index]
