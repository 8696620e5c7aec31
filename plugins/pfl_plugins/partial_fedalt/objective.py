"""FedAlt: tau_v steps on the personal part, then tau_u steps on the shared one (Algorithm 2 of 2204.03809)."""

from __future__ import annotations

from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation
from pfl_platform.federation.rounds import context
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.fedsim.objective import GLOBAL, LOCAL, TwoParts
from pfl_plugins.partial_fedalt.config import Config


class PartialFedAlt(TwoParts):
    """The same model as FedSim's; one part is frozen while the other one trains."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._share = config.personal_share

    def check(self, fed: Federation) -> None:
        """Both parts get a step."""
        super().check(fed)
        for client in fed.clients:
            if context(fed, client, 0).local_steps < 2:
                raise UserError(
                    f"Client '{client.client_id}' has one local step a round, and FedAlt needs one for each of its two "
                    "parts; set local_steps=2 or more."
                )

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        optim = self.optim(ctx)
        own = Step(ctx.adapter.trainable(LOCAL), self.loss, optim)
        everybody = Step(ctx.adapter.trainable(GLOBAL), self.loss, optim)
        tau_v = split(ctx.local_steps, self._share)
        return (
            ctx.phase(own, name="personal", amount=tau_v),
            ctx.phase(everybody, name="shared", amount=ctx.local_steps - tau_v, first=tau_v),
        )


def split(steps: int, share: float) -> int:
    """tau_v: so many of at least two steps, rounded down, but at least one for each part.

    >>> split(100, 0.5), split(3, 0.5), split(5, 0.01), split(5, 0.99)
    (50, 1, 1, 4)
    """
    return min(max(1, int(steps * share)), steps - 1)
