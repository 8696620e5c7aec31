"""FedSA-LoRA's client: A and B are trained, A travels, B is its own."""

from __future__ import annotations

from dataclasses import replace

from pfl_platform.adapters.surfaces import Keys, Mix, Slot
from pfl_platform.federation.components import ClientContext, Needs, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step

SLOT = "local"


class FedSaLora(Objective):
    """One slot whose A is downloaded and sent, and whose B goes on from the client's last round."""

    @property
    def needs(self) -> Needs:
        return Needs(adapters=("lora",))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(SLOT),)

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(SLOT, "A")

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        optim = replace(ctx.optim, reset=Keys(f"{SLOT}/*/A"))
        return (ctx.phase(Step(ctx.adapter.trainable(SLOT), answers_under(self.mix), optim)),)
