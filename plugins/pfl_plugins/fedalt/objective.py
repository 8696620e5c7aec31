"""FedALT's client: its local adapter and mixer train; what the others have learned is mixed in and stays frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, MixFactory, Slot
from pfl_platform.federation.components import ClientContext, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.rng import torch_rng
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.fedalt.config import Config
from pfl_plugins.fedalt.mixer import LOCAL, ROW, TokenMixer

MIXER = "mixer"


class FedALT(Objective):
    """Slot `local`: trained, sent, never overwritten. Slot `row`: received, frozen. The mixer stays at the client."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(LOCAL), Slot(ROW))

    @property
    def mixes(self) -> Mapping[str, MixFactory]:
        return {MIXER: TokenMixer} if self.config.mixer == "token" else {}

    @property
    def mix(self) -> Mix:
        return MIXER if self.config.mixer == "token" else {ROW: 0.5, LOCAL: 0.5}

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(LOCAL)

    @property
    def down(self) -> tuple[Share, ...]:
        return shares_of(ROW)

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """There is no rest of the world yet: it starts as an adapter that does nothing, and so does the local one."""
        slots = ctx.start(LOCAL, ROW)
        if self.config.mixer == "fixed":
            return slots
        mixers = {}
        for site in ctx.sites:
            weight = torch.zeros(2, site.in_features)
            if self.config.mixer_start == "official_uniform":
                generator = torch_rng(ctx.fed.seed, MIXER, site.name)
                weight = (torch.rand(weight.shape, generator=generator) * 2 - 1) / math.sqrt(site.in_features)
            mixers[f"{MIXER}/{site.name}/weight"] = weight
        return {**slots, **mixers}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        train = Keys(*ctx.adapter.trainable(LOCAL).patterns, f"{MIXER}/*")
        return (ctx.phase(Step(train, answers_under(self.mix), ctx.optim)),)
