"""FedSA-LoRA's client: A and B are trained, A travels, B is its own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

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
    def down(self) -> tuple[Share, ...]:
        return self.up

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        return ctx.fed.adapter_of(ctx.client.client_id).initial(ctx.fed.load(ctx.backbone), SLOT, ctx.fed.seed)

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        optim = replace(ctx.optim, reset=Keys(f"{SLOT}/*/A"))
        step = Step(ctx.fed.adapter_of(ctx.client.client_id).trainable(SLOT), answers_under(self.mix), optim)
        return (Phase("local", (step,), ctx.local_steps, ctx.source, ctx.fed.config.training.micro_batch),)
