"""FLOPs of a task, found twice: by the profiler, and by the formula for every forward pass that was really made.

The profiler counts one dry row per kind of work (a step, or a statistic), and batches are booked by what they are to
that row: their tokens, and their answer tokens with what the head is to the blocks (`Host.work`).
The dry row is discarded, so counting never touches what is trained. The formula is booked where a backbone is called,
so that a second pass, a pass of another backbone, or one that only some steps make, is in it. A meter lives as long as
a task: what a task is said to cost must not depend on what its process did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pfl_platform.backbones import MASKS
from pfl_platform.ledger.flops import count_flops, pass_flops

if TYPE_CHECKING:
    from pfl_platform.adapters.host import Host
    from pfl_platform.adapters.surfaces import Mix

FROZEN = "frozen"


@dataclass(frozen=True)
class Pass:
    """One kind of forward pass: of which backbone, which slots are in it and train, which are in it and do not, and
    whether a way back follows."""

    backbone: str
    trained: tuple[str, ...]
    idle: tuple[str, ...]
    gradient: bool


class FlopMeter:
    """Counts a kind of work once and books it by size.

    >>> meter = FlopMeter()
    >>> import torch
    >>> meter.measure(("tiny", "step"), lambda: 4, lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    >>> meter.book(("tiny", "step"), 8)   # 2 * 2 * 3 * 5 = 60 FLOPs for 4 tokens, so 120 for 8
    >>> meter.total
    120.0

    total: what the profiler counted, scaled by size. formula: `pass_flops` of every pass of the watched backbones.
    passes: how many of those there were, by backbone. tokens: by kind of pass. Dry rows are in none. rows: those of a
    pass that it counts, None for no pass at all, where several clients train side by side.
    """

    def __init__(self) -> None:
        self._per_unit: dict[tuple[str, ...], float] = {}
        self._dry = False
        self.total = 0.0
        self.formula = 0
        self.passes: dict[str, int] = {}
        self.tokens: dict[Pass, int] = {}
        self.rows: slice | None = slice(None)

    @property
    def per_unit(self) -> Mapping[tuple[str, ...], float]:
        """FLOPs for each unit of size of the kinds of work that were measured."""
        return dict(self._per_unit)

    def known(self, kind: tuple[str, ...]) -> bool:
        return kind in self._per_unit

    def measure(self, kind: tuple[str, ...], size: Callable[[], float], run: Callable[[], object]) -> None:
        """Runs `run` under the profiler; its result is dropped. size: of this work, asked for afterwards."""
        self._dry = True
        try:
            self._per_unit[kind] = count_flops(run)[1] / max(1, size())
        finally:
            self._dry = False

    def book(self, kind: tuple[str, ...], size: float) -> None:
        self.total += self._per_unit[kind] * size

    @contextmanager
    def watching(self, host: Host, slots: Sequence[str] = ()) -> Iterator[None]:
        """Books every pass of the host's backbone that is made inside. `slots`: what a learned mix may weigh."""
        sizes: dict[str, list[tuple[Tensor, int]]] = {}
        for key, tensor in host.params.items():
            sizes.setdefault(key.partition("/")[0], []).append((tensor, tensor.numel()))

        def called(_module: nn.Module, _args: Any, inputs: Mapping[str, Any], _output: Any) -> None:
            if self._dry or self.rows is None:
                return
            trained = idle = 0
            training: list[str] = []
            resting: list[str] = []
            for slot in sorted(_in_use(host.control.mix, slots)):
                for tensor, size in sizes.get(slot, ()):
                    if tensor.requires_grad:
                        trained += size
                    else:
                        idle += size
                if slot in slots:
                    open_ = any(tensor.requires_grad for tensor, _ in sizes.get(slot, ()))
                    (training if open_ else resting).append(slot)
            if host.control.lengths is not None:
                tokens = sum(host.control.lengths[self.rows])
            else:
                masks = [inputs[name] for name in MASKS if name in inputs]
                tokens = sum(int(mask[self.rows].sum()) for mask in masks)
            gradient = torch.is_grad_enabled() and trained > 0
            head, blocks = host.head_values, host.linear_values - host.head_values
            answers = tokens if host.control.answers is None else sum(host.control.answers.per_row[self.rows])
            self.formula += pass_flops(blocks, trained, idle, tokens, gradient=gradient, head=head, answers=answers)
            kind = Pass(host.backbone.name, tuple(training), tuple(resting), gradient)
            self.tokens[kind] = self.tokens.get(kind, 0) + tokens
            self.passes[host.backbone.name] = self.passes.get(host.backbone.name, 0) + 1

        hook = host.backbone.model.register_forward_hook(called, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _in_use(mix: Mix, slots: Sequence[str]) -> set[str]:
    """The slots whose params a pass under this mix is multiplied with."""
    if not mix:
        return set()
    return {FROZEN, *((*slots, mix) if isinstance(mix, str) else mix)}
