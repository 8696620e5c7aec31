"""FFA-LoRA's client: B is trained and travels, A stays as it was drawn."""

from __future__ import annotations

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
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        return (ctx.phase(Step(Keys(f"{SLOT}/*/B"), answers_under(self.mix), ctx.afresh(SLOT))),)
