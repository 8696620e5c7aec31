"""FFA-LoRA's client: B is trained and travels, A stays as it was drawn."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot
from pfl_platform.federation.components import ClientContext, Needs, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step

SLOT = "global"


class FfaLora(Objective):
    """Slot `global`. A comes from the run's seed, which all clients have, so it is never sent."""

    @property
    def needs(self) -> Needs:
        return Needs(adapters=("lora",))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(SLOT),)

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(SLOT, "B")

    @property
    def down(self) -> tuple[Share, ...]:
        return self.up

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        return ctx.fed.adapter_of(ctx.client.client_id).initial(ctx.fed.load(ctx.backbone), SLOT, ctx.fed.seed)

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        step = Step(Keys(f"{SLOT}/*/B"), answers_under(self.mix), replace(ctx.optim, moments="reset"))
        return (Phase("local", (step,), ctx.local_steps, ctx.source, ctx.fed.config.training.micro_batch),)
