"""FedDPA's client: variant T trains a local adapter beside the global one, F fine-tunes the final global one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Slot, Tensors, renamed
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Objective
from pfl_platform.federation.rounds import context
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.rng import seed_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.feddpa.config import Config

GLOBAL, LOCAL = "global", "local"


class FedDPA(Objective):
    """Slot `global`: downloaded, trained alone, sent. Slot `local`: trained and kept."""

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
        return {LOCAL: self.config.alpha, GLOBAL: 1.0 - self.config.alpha}

    def check(self, fed: Federation) -> None:
        """There are steps for both adapters (T), or rounds before and in fine-tuning for everybody (F)."""
        config, rounds = self.config, fed.config.rounds
        if config.variant == "T" and (least := min(context(fed, c, 0).local_steps for c in fed.clients)) < 2:
            raise UserError(
                f"A round of {least} local step leaves nothing for FedDPA-T's second adapter; set "
                "local_steps=2 or more, or objective.variant=F."
            )
        if config.variant == "F" and rounds <= config.tune_rounds:
            raise UserError(
                f"FedDPA-F fine-tunes in the last {config.tune_rounds} of {rounds} rounds, and so there is no global "
                "adapter to start from; set more rounds, or fewer objective.tune_rounds."
            )
        if config.variant == "F" and fed.config.partial:
            raise UserError(
                "FedDPA-F fine-tunes at every client in its last rounds, so none may miss a round; leave `cohort` at 0 "
                "and `participation.availability` empty, or set objective.variant=T."
            )
        if config.variant == "F" and config.official_leak:
            raise UserError("FedDPA-F sends nothing while it trains local adapters; official_leak is for variant T.")

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """T: the local adapter is drawn elsewhere. F: it is the global one until fine-tuning begins."""
        if self.config.variant == "F":
            return ctx.start(GLOBAL, LOCAL)
        return {**ctx.start(GLOBAL), **ctx.start(LOCAL, seed=seed_of(ctx.fed.seed, "personal"))}

    def tuning(self, ctx: ClientContext) -> int:
        """F: how many rounds of fine-tuning lie behind, counted from 0 in the first; negative before."""
        if self.config.variant == "T":
            return -1
        return ctx.round_index - (ctx.fed.config.rounds - self.config.tune_rounds)

    def uploads(self, ctx: ClientContext) -> bool:
        return self.tuning(ctx) < 0

    def downloads(self, ctx: ClientContext) -> bool:
        """The first round of fine-tuning still begins with the final global adapter."""
        return self.tuning(ctx) <= 0

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """F: the local adapter starts where the global one is."""
        received = {**state, **reply}
        return received if self.config.variant == "T" else {**received, **renamed(received, GLOBAL, LOCAL)}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        adapter, config, total = ctx.adapter, self.config, ctx.local_steps
        alone = Step(adapter.trainable(GLOBAL), answers_under({GLOBAL: 1.0}), ctx.afresh(GLOBAL))
        optim = ctx.afresh(LOCAL) if config.official_leak else ctx.optim
        if config.variant == "F":
            if self.tuning(ctx) < 0:  # so far the personal model is the global one
                return (ctx.phase(alone, name="global", after=copied),)
            return (ctx.phase(Step(adapter.trainable(LOCAL), answers_under({LOCAL: 1.0}), optim)),)
        first = config.order == "local_first"
        mix = {LOCAL: 1.0} if first and ctx.round_index == 0 else self.mix
        beside = Step(adapter.trainable(LOCAL), answers_under(mix), optim)
        count = min(max(1, int(total * config.local_share)), total - 1)
        local = ctx.phase(beside, amount=count, first=0 if first else total - count)
        shared = ctx.phase(alone, name="global", amount=total - count, first=count if first else 0)
        return (local, shared) if first else (shared, local)


def copied(params: dict[str, Tensor], _refs: Tensors) -> Mapping[str, Tensor]:
    """The trained global adapter, also as the local one."""
    return {**params, **renamed(params, GLOBAL, LOCAL)}
