"""Ditto's client: a global adapter for everybody and a personal one of its own, both stepped on every batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, Tensors, renamed
from pfl_platform.federation.components import ClientContext, Federation, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Penalty, Phase, Step
from pfl_plugins.ditto.config import Config
from pfl_plugins.ditto.equations import proximal

GLOBAL, LOCAL = "global", "local"


class Ditto(Objective):
    """Slot `global` (w): downloaded, trained, sent. Slot `local` (v): trained near the w that was downloaded, kept."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(GLOBAL), Slot(LOCAL))

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(GLOBAL) + (shares_of(LOCAL) if self.config.official_leak else ())

    @property
    def mix(self) -> Mix:
        return {LOCAL: 1.0}

    def check(self, fed: Federation) -> None:
        """Lambdas are given for clients that exist."""
        fed.check_names("objective.lams", self.config.lams)

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        adapter = ctx.adapter
        lam = self.config.lams.get(ctx.client.client_id, self.config.lam)
        everybody = Step(adapter.trainable(GLOBAL), answers_under({GLOBAL: 1.0}), ctx.afresh(GLOBAL), name="global")
        optim = ctx.afresh(LOCAL) if self.config.official_leak else ctx.optim
        own = Step(adapter.trainable(LOCAL), answers_under(self.mix), optim, near(lam), "local")
        return (ctx.phase(everybody, own),)


def near(lam: float) -> Penalty:
    """The pull to w^t. `refs` hold the state as training began, so the anchor does not move with the global step."""

    def penalty(params: Mapping[str, Tensor], refs: Tensors) -> Tensor | None:
        live = Keys(f"{LOCAL}/*").of(params)
        anchors = {key: value for key, value in renamed(refs, GLOBAL, LOCAL).items() if key in live}
        return proximal(live, anchors, lam) if lam > 0 else None

    return penalty
