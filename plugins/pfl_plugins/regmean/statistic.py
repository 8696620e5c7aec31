"""Gram matrices of the adapted maps' inputs, measured at a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Site, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Objective, Update
from pfl_platform.training.surfaces import Planned, Source, Statistic, View
from pfl_plugins.merging.measures import Measure, held_out
from pfl_plugins.regmean.config import Config
from pfl_plugins.regmean.rule import STATISTIC

JOIN = "+"
"""Between the sites of one key that share their input."""


@dataclass
class _Sums:
    """Per distinct input (the sites that read it): `X^T X` or its diagonal, float64, and the number of tokens."""

    grams: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    tokens: dict[tuple[str, ...], float] = field(default_factory=dict)


class Gram(Statistic):
    """`G = X^T X` of each adapted map's input X (tokens, d_in), at the model as it is, in eval mode.

    Padding does not count. Maps that read the same tensor (query, key and value of a layer) share one matrix. Summed in
    float64, sent in float32 as `gram/<site>+<site>...`; divided by the number of tokens if `per_token`.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        mix: Mix,
        source: Source,
        amount: int,
        *,
        diagonal: bool = False,
        per_token: bool = True,
    ) -> None:
        self.name, self.data, self.amount = STATISTIC, source, amount
        self.sites, self.mix = tuple(sites), mix
        self.diagonal, self.per_token = diagonal, per_token

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        found = {}
        for index in sorted(set(plan.readers)):
            members = [site.name for site, first in zip(plan.sites, plan.readers, strict=True) if first == index]
            size = plan.sites[index].in_features
            shape = (size,) if self.diagonal else (size, size)
            found[f"{STATISTIC}/{JOIN.join(sorted(members))}"] = plan.tensor(*shape)
        return found

    def add(self, acc: Any, view: View) -> _Sums:
        sums: _Sums = acc if acc is not None else _Sums()
        paths = {site.path: site.name for site in self.sites}
        output = view.forward(self.mix, grad=False, train=False, taps=tuple(paths))
        for members, x in _distinct({name: output.taps[path] for path, name in paths.items()}):
            path = next(site.path for site in self.sites if site.name == members[0])
            mask = view.backbone().mask(path, output.encoded.inputs).bool()
            rows = x[mask.to(x.device)].double() if mask.shape == x.shape[:-1] else x.flatten(0, -2).double()
            found = rows.square().sum(dim=0) if self.diagonal else rows.T @ rows
            sums.grams[members] = sums.grams[members] + found if members in sums.grams else found
            sums.tokens[members] = sums.tokens.get(members, 0.0) + len(rows)
        return sums

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        if acc is None:
            return {}, {}
        sent = {}
        for members, gram in acc.grams.items():
            count = acc.tokens[members] if self.per_token else 1.0
            sent[f"{STATISTIC}/{JOIN.join(members)}"] = (gram / max(count, 1.0)).float().cpu()
        return sent, {}


def _distinct(taps: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], Tensor]]:
    """The distinct tensors among inputs by site, each with the sites that read it, sorted."""
    found: dict[tuple[int, torch.Size], list[str]] = {}
    for name in sorted(taps):
        found.setdefault((taps[name].data_ptr(), taps[name].shape), []).append(name)
    return [(tuple(members), taps[members[0]]) for members in found.values()]


class Grams(Measure):
    """Gram matrices as RegMean reads them: under "gram", by module."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def keys(self) -> Keys:
        return Keys(f"{STATISTIC}/*")

    def statistic(self, ctx: ClientContext, objective: Objective) -> Gram:
        config = self.config
        source = held_out(ctx, config.samples, STATISTIC)
        sites = ctx.sites
        return Gram(
            sites,
            objective.mix,
            source,
            source.steps(),
            diagonal=config.diagonal or config.a == 0,
            per_token=config.per_token,
        )

    def address(self, update: Update, name: str, module: str) -> str:
        site = module.split("/", 1)[1]
        sent = (key for key in update.names() if key in self.keys)
        found = [key for key in sent if site in key.removeprefix(f"{STATISTIC}/").split(JOIN)]
        if len(found) != 1:
            raise UserError(f"The update of client '{update.client_id}' has no Gram matrix of '{site}'.")
        return found[0]

    def read(self, update: Update, name: str, module: str) -> Tensor:
        key = self.address(update, name, module)
        return update.tensors(Keys(key))[key]
