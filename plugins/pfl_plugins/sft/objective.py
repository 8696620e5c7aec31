"""The objective and the empty aggregator of SFT."""

from __future__ import annotations

from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Slot
from pfl_platform.federation.components import (
    Aggregator,
    ClientContext,
    Federation,
    Needs,
    Objective,
    ServerState,
    Updates,
)
from pfl_platform.federation.tasks import Program, Share
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step


class Sft(Objective):
    """One slot, `local`, trained on the answers; nothing goes up or comes down."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("local"),)

    @property
    def up(self) -> tuple[Share, ...]:
        return ()

    @property
    def mix(self) -> Mix:
        return {"local": 1.0}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        return (ctx.phase(Step(ctx.adapter.trainable("local"), answers_under(self.mix), ctx.optim)),)


class NoExchange(Aggregator):
    """A server that hears nothing and says nothing."""

    @property
    def needs(self) -> Needs:
        return Needs(combines="nothing")

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        return state

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return {}
