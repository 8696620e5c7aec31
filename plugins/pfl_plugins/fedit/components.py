"""Objective and aggregator of FedIT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, shared
from pfl_platform.federation.components import (
    Aggregator,
    ClientContext,
    Federation,
    Needs,
    Objective,
    ServerState,
    Update,
    Updates,
    combine,
)
from pfl_platform.federation.tasks import Address, Program, Share
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
        return (Share(shared(SLOT, "all"), "all"), Share(shared(SLOT, "backbone"), "backbone"))

    @property
    def down(self) -> tuple[Share, ...]:
        return self.up

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        return ctx.fed.adapter.initial(ctx.fed.load(ctx.backbone), SLOT, ctx.fed.seed)

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        optim = replace(ctx.optim, moments="reset")
        step = Step(ctx.fed.adapter.trainable(SLOT), answers_under(self.mix), optim)
        return (Phase("local", (step,), ctx.local_steps, ctx.source, ctx.fed.config.training.micro_batch),)


def average(updates: Sequence[Update], keys: Keys, weighting: str) -> dict[str, Tensor]:
    """`sum_i p_i theta_i` over the given keys, each tensor (A, B, ...) on its own; p_i sums to 1."""
    sizes = [float(update.num_examples) if weighting == "examples" else 1.0 for update in updates]
    total = sum(sizes)
    return combine((update.tensors(keys) for update in updates), [size / total for size in sizes])


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
        if len(updates) == 0:
            return state
        everybody = average(list(updates), Keys("*/block*"), self.config.weighting)
        addresses: dict[str, Address] = dict(state.tensors)
        for backbone in sorted({update.backbone for update in updates}):
            group = [update for update in updates if update.backbone == backbone]
            own = average(group, Keys("*/layer*"), self.config.weighting)
            addresses[backbone] = fed.store.put({**own, **everybody})
        if everybody:
            for backbone in set(addresses) - {update.backbone for update in updates}:
                addresses[backbone] = fed.store.put({**fed.store.get(addresses[backbone]), **everybody})
        return ServerState(addresses)

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        address = state.tensors.get(fed.backbone_of[client_id])
        return fed.store.get(address) if address else {}
