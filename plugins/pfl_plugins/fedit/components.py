"""Objective and aggregator of FedIT."""

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
from pfl_platform.federation.groups import average, of_backbone, weighed
from pfl_platform.federation.tasks import Program, Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.fedit.config import AverageConfig

SLOT = "global"


class FedIT(Objective):
    """One slot, `global`: downloaded, trained, uploaded."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(SLOT),)

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(SLOT)

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        return (ctx.phase(Step(ctx.adapter.trainable(SLOT), answers_under(self.mix), ctx.afresh(SLOT))),)


class FedAvg(Aggregator):
    """Averages over everybody where params mean the same everywhere, else among the clients of a backbone.

    State: per backbone, the address of the averaged params. A backbone of which no client took part keeps what it had.
    """

    def __init__(self, config: AverageConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=("*",), replies=("*",))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        examples = self.config.weighting == "examples"
        weights = weighed(fed, updates, examples=examples)
        return ServerState(average(fed, dict(state.tensors), updates, examples=examples), {}, {"weights": weights})

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return of_backbone(fed, state, client_id)
