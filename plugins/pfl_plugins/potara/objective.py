"""Potara's client: FedIT and Local in one run, on one backbone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Slot, shared
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Objective
from pfl_platform.federation.tasks import Share
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_plugins.potara.config import Config

FEDERATED, LOCAL = "global", "local"


class Potara(Objective):
    """Slots `global` (FedIT: received, trained, sent) and `local` (trained alone). Both start from the same params, and
    in a round each sees the same batches. After its last round neither changes any more, and nothing is sent."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(FEDERATED), Slot(LOCAL))

    @property
    def up(self) -> tuple[Share, ...]:
        return (Share(shared(FEDERATED, "all"), "all"), Share(shared(FEDERATED, "backbone"), "backbone"))

    @property
    def down(self) -> tuple[Share, ...]:
        return self.up

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
        return ctx.round_index <= self._last(self.config.fedit_rounds, ctx) or ctx.fed.config.cohort > 0

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """The merge of factors means something only between models with a common start: the same A, and B = 0."""
        adapter, backbone = ctx.fed.adapter_of(ctx.client.client_id), ctx.fed.load(ctx.backbone)
        return {
            key: tensor
            for slot in (FEDERATED, LOCAL)
            for key, tensor in adapter.initial(backbone, slot, ctx.fed.seed).items()
        }

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        plan = (
            ("federated", FEDERATED, self.config.fedit_rounds, replace(ctx.optim, moments="reset")),
            ("local", LOCAL, self.config.local_rounds, ctx.optim),
        )
        return tuple(
            self._phase(ctx, name, slot, self._last(rounds, ctx), optim)
            for name, slot, rounds, optim in plan
            if ctx.round_index < self._last(rounds, ctx)
        )

    def _phase(self, ctx: ClientContext, name: str, slot: str, rounds: int, optim: Optim) -> Phase:
        optim = replace(optim, total_steps=rounds * ctx.local_steps)
        keys = ctx.fed.adapter_of(ctx.client.client_id).trainable(slot)
        step = Step(keys, answers_under({slot: 1.0}), optim)
        return Phase(name, (step,), ctx.local_steps, ctx.source, ctx.fed.config.training.micro_batch)

    def _last(self, rounds: int, ctx: ClientContext) -> int:
        return rounds or ctx.fed.config.rounds
