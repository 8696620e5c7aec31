"""Diagonal Fisher information of the adapter's params, measured at a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.host import BASE
from pfl_platform.adapters.surfaces import Keys, Mix, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Objective, Update
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Planned, Source, Statistic, View, Want
from pfl_plugins.fisher.config import Config
from pfl_plugins.fisher.rule import STATISTIC
from pfl_plugins.merging.measures import Measure, held_out


class Information(Statistic):
    """Empirical Fisher: the mean over samples of the squared gradient of each sample's own loss, by the data's labels.

    Squaring comes before averaging; the square of a batch's gradient is another, much smaller thing. Summed in
    float64, sent in float32 as `fisher/<key>`. A key `base/<site>/W` is the dense map at a site.
    """

    def __init__(self, keys: Keys, mix: Mix, source: Source, amount: int) -> None:
        self.name, self.data, self.amount = STATISTIC, source, amount
        self.wants = (Want(STATISTIC, keys, answers_under(mix, dropout=False), apart=isinstance(mix, Mapping)),)

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        slots = {pattern.partition("/")[0] for want in self.wants for pattern in want.keys.patterns}
        if BASE in slots:
            return {
                f"{STATISTIC}/{BASE}/{site.name}/W": plan.tensor(site.out_features, site.in_features)
                for site in plan.sites
            }
        return {
            f"{STATISTIC}/{slot}/{place}": plan.tensor(size)
            for slot in sorted(slots)
            for place, size in plan.values.items()
            if place.endswith(("/A", "/B"))
        }

    def add(self, acc: Any, view: View) -> tuple[dict[str, Tensor], int]:
        sums, count = acc if acc is not None else ({}, 0)
        for key, gradient in view.gradients[STATISTIC].items():
            square = gradient.double().square()
            sums[key] = sums[key] + square if key in sums else square
        return sums, count + 1

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        sums, count = acc if acc is not None else ({}, 0)
        return {f"{STATISTIC}/{key}": (value / count).float().cpu() for key, value in sums.items()}, {}


class FisherInformation(Measure):
    """Fisher information as the rule reads it: under "fisher/A" and "fisher/B", or "fisher/W", by module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def keys(self) -> Keys:
        return Keys(f"{STATISTIC}/*")

    def statistic(self, ctx: ClientContext, objective: Objective) -> Information:
        source = held_out(ctx, self.config.samples, STATISTIC)
        if self.config.space != "ab":
            dense = Keys(*(f"{BASE}/{site.name}/W" for site in ctx.sites))
            return Information(dense, objective.mix, source, source.steps())
        sent = Keys(*(pattern for share in objective.up for pattern in share.keys.patterns))
        start = ctx.start(*(slot.name for slot in objective.slots))
        keys = [key for key in start if key in sent and key.endswith(("/A", "/B"))]
        return Information(Keys(*keys), objective.mix, source, source.steps())

    def read(self, update: Update, name: str, module: str) -> Tensor:
        part = name.rpartition("/")[2]
        where = f"{BASE}/{module.split('/', 1)[1]}/W" if part == "W" else f"{module}/{part}"
        key = f"{STATISTIC}/{where}"
        found = update.tensors(Keys(key))
        if key not in found:
            raise UserError(f"The update of client '{update.client_id}' has no Fisher information of '{where}'.")
        return found[key]
