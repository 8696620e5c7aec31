"""A model of two parts (2204.03809): u is everybody's, v is a client's own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation.components import ClientContext, Federation, Objective, Personalizer
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.rng import seed_of
from pfl_platform.training.losses import answer_loss, answers_under
from pfl_platform.training.surfaces import Loss, Optim, Phase, Step, View
from pfl_plugins.fedsim.config import Config

GLOBAL, LOCAL = "global", "local"
PERSONALIZER = "fedsim"


class TwoParts(Objective):
    """Slot `global` (u): downloaded, trained, sent. Slot `local` (v): trained and kept. What is common to FedSim, which
    updates both at once, and FedAlt, which alternates."""

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
        return {GLOBAL: 1.0, LOCAL: 1.0}

    @property
    def recipe(self) -> InferenceRecipe:
        """As it was trained: one pass, or one for each part."""
        return InferenceRecipe((self.mix,) if self.config.combine == "hidden_sum" else ({GLOBAL: 1.0}, {LOCAL: 1.0}))

    @property
    def loss(self) -> Loss:
        return answers_under(self.mix) if self.config.combine == "hidden_sum" else added

    def check(self, fed: Federation) -> None:
        """A model of two passes is evaluated as one."""
        chosen = fed.config.personalizer
        if self.config.combine == "logit_sum" and (chosen is None or chosen.name != PERSONALIZER):
            raise UserError(
                "objective.combine=logit_sum adds the logits of two passes, which only the personalizer "
                f"'{PERSONALIZER}' does; set personalizer={PERSONALIZER}."
            )

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """u is everybody's. v is drawn elsewhere: from the same numbers the two would have the same gradients."""
        return {**ctx.start(GLOBAL), **ctx.start(LOCAL, seed=seed_of(ctx.fed.seed, "personal"))}

    def optim(self, ctx: ClientContext) -> Optim:
        """Moments of what a download replaces do not survive."""
        return ctx.afresh(GLOBAL, LOCAL) if self.config.official_leak else ctx.afresh(GLOBAL)


class FedSim(TwoParts):
    """Both parts in one backward pass."""

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        train = Keys(*ctx.adapter.trainable(GLOBAL).patterns, *ctx.adapter.trainable(LOCAL).patterns)
        return (ctx.phase(Step(train, self.loss, self.optim(ctx))),)


def added(view: View) -> Tensor:
    """The loss of `logits(u) + logits(v)`. The gradient flows through both passes."""
    shared, own = view.forward({GLOBAL: 1.0}), view.forward({LOCAL: 1.0})
    return answer_loss(replace(own, scores=shared.scores + own.scores))


class AsTrained(Personalizer):
    """The passes that a model of two parts is trained with."""

    def recipe(self, objective: Objective) -> InferenceRecipe:
        if not isinstance(objective, TwoParts):
            raise UserError(f"The personalizer '{PERSONALIZER}' evaluates models of a shared and a personal part only.")
        return objective.recipe
