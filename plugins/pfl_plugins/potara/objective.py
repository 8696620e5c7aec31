"""Potara's client: FedIT and Local in one run, on one backbone."""

from __future__ import annotations

from dataclasses import replace

from pfl_platform.adapters.surfaces import Mix, Slot
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_plugins.potara.config import Config

FEDERATED, LOCAL = "global", "local"


class Potara(Objective):
    """Slots `global` (FedIT: received, trained, sent) and `local` (trained alone). Both start from the same params, as
    the merge of factors means something only then, and in a round each sees the same batches. After its last round
    neither changes any more, and nothing is sent. On backbones with a task head the federated model has its own, and
    the client's is the local model's."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(FEDERATED, head=True), Slot(LOCAL))

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(FEDERATED)

    @property
    def mix(self) -> Mix:
        return {LOCAL: 1.0}

    def check(self, fed: Federation) -> None:
        """Neither adapter is trained for longer than the run lasts."""
        for name, count in (("fedit_rounds", self.config.fedit_rounds), ("local_rounds", self.config.local_rounds)):
            if count > fed.config.rounds:
                raise UserError(f"objective.{name} is {count}, but the run has {fed.config.rounds} rounds.")

    def uploads(self, ctx: ClientContext) -> bool:
        return ctx.round_index < self._last(self.config.fedit_rounds, ctx)

    def downloads(self, ctx: ClientContext) -> bool:
        """The last average comes down once; to clients of a cohort, which may have missed that round, in every one."""
        return ctx.round_index <= self._last(self.config.fedit_rounds, ctx) or ctx.fed.config.partial

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        plan = (
            ("federated", FEDERATED, self.config.fedit_rounds, ctx.afresh(FEDERATED)),
            ("local", LOCAL, self.config.local_rounds, ctx.optim),
        )
        return tuple(
            self._phase(ctx, name, slot, self._last(rounds, ctx), optim)
            for name, slot, rounds, optim in plan
            if ctx.round_index < self._last(rounds, ctx)
        )

    def _phase(self, ctx: ClientContext, name: str, slot: str, rounds: int, optim: Optim) -> Phase:
        optim = replace(optim, total_steps=rounds * ctx.local_steps)
        return ctx.phase(Step(ctx.adapter.trainable(slot), answers_under({slot: 1.0}), optim), name=name)

    def _last(self, rounds: int, ctx: ClientContext) -> int:
        return rounds or ctx.fed.config.rounds
