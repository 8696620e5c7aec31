"""FedMKT's client: learns from the server's predictions, then from its own data, and sends what it predicts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, Tensors
from pfl_platform.distillation.public import PublicSet
from pfl_platform.federation.components import ClientContext, Federation, Needs, Objective
from pfl_platform.federation.tasks import Share
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Statistic, Step
from pfl_plugins.fedmkt.config import Config
from pfl_plugins.fedmkt.learning import KNOWLEDGE, MIX, SLOT, TAUGHT, Lesson, measure


class FedMKT(Objective):
    """Slot `local` never leaves the client; predictions `knowledge/...` go up, predictions `taught/...` come down."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(SLOT),)

    @property
    def needs(self) -> Needs:
        return Needs(continues=True)

    @property
    def up(self) -> tuple[Share, ...]:
        return (Share(Keys(f"{KNOWLEDGE}/ids", f"{KNOWLEDGE}/logp", f"{KNOWLEDGE}/losses"), "backbone"),)

    @property
    def down(self) -> tuple[Share, ...]:
        return (Share(Keys(f"{TAUGHT}/*"), "backbone"),)

    @property
    def mix(self) -> Mix:
        return MIX

    def check(self, fed: Federation) -> None:
        """The public set is there."""
        PublicSet.of(fed, self.config.samples)

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """Predictions are read from the message and not kept."""
        return state

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        fed, name, train = ctx.fed, ctx.client.client_id, ctx.adapter.trainable(SLOT)
        private = ctx.phase(Step(train, answers_under(MIX), ctx.optim))
        if ctx.round_index == 0:  # the server has not heard of anybody yet
            return (private,)
        config, training = self.config, fed.config.training
        lesson = Lesson(fed, config, fed.backbone_of[name])
        source = Epochs(
            lesson.public.samples,
            config.batch_size or training.batch_size,
            fed.seed,
            f"taught {name} {ctx.round_index}",
        )
        optim = Optim(config.lr, clip=training.clip, moments="reset")
        step = Step(train, lesson, optim)
        taught = Phase(
            "taught", (step,), source.steps(config.epochs), source, training.micro_batch, by_length=training.by_length
        )
        return (taught, private)

    def statistics(self, ctx: ClientContext) -> tuple[Statistic, ...]:
        return (measure(ctx.fed, self.config, keep=("losses",)),)
