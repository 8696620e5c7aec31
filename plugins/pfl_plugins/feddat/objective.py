"""FedDAT's client: a shared adapter and a dual-adapter teacher learn from each other on every batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Slot, Tensors, renamed
from pfl_platform.federation.components import ClientContext, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.surfaces import Phase, Step, View
from pfl_plugins.feddat.config import Config
from pfl_plugins.feddat.equations import mutual

GLOBAL, LOCAL, ANCHOR = "global", "local", "anchor"
NOTE = "feddat/shared"
"""Where the first step of a batch leaves the logits of the shared adapter for the second one."""


class FedDAT(Objective):
    """Slots `global` (a_1: downloaded, trained, sent), `local` (a_0: trained, kept) and `anchor` (a_2: a_1 as it was
    downloaded, frozen). The teacher is the mix of `local` and `anchor`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(GLOBAL), Slot(LOCAL), Slot(ANCHOR))

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(GLOBAL)

    @property
    def mix(self) -> Mix:
        """The teacher, which is the personal model."""
        return {LOCAL: self.config.local_share, ANCHOR: 1.0 - self.config.local_share}

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """a_2 is a copy of what came down, whether it was sent or only the others' part of it was."""
        received = {**state, **reply}
        return {**received, **renamed(received, GLOBAL, ANCHOR)}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        adapter = ctx.adapter
        shared = Step(adapter.trainable(GLOBAL), self.shared_loss, ctx.afresh(GLOBAL), name="shared")
        teacher = Step(adapter.trainable(LOCAL), self.teacher_loss, ctx.optim, name="teacher")
        return (ctx.phase(shared, teacher),)

    def shared_loss(self, view: View) -> Tensor:
        """a_1 learns from the answers and from the teacher, which is run without gradient."""
        teacher = view.forward(self.mix, grad=False).answers
        own = view.forward({GLOBAL: 1.0})
        view.notes[NOTE] = own.answers.detach()  # all that is kept of the pass for the other update
        return mutual(own, teacher, self.config.temperature, teacher_first=self.config.official_kl)

    def teacher_loss(self, view: View) -> Tensor:
        """a_0 learns, through the teacher, from the answers and from a_1 as it was before its step."""
        shared = view.notes.pop(NOTE)
        own = view.forward(self.mix)
        return mutual(own, shared, self.config.temperature, teacher_first=self.config.official_kl)
