"""The personalizer: each entry of the two models weighs what the client's data say about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Blend, InferenceRecipe
from pfl_platform.federation.components import ClientContext, Federation, Needs, Objective, Personalizer
from pfl_platform.training.surfaces import Statistic, View, Want
from pfl_plugins.fishermerge.config import Config
from pfl_plugins.fishermerge.equations import merged
from pfl_plugins.potara.objective import FEDERATED, LOCAL
from pfl_plugins.potara.personalizer import check_slots, ends, merged_head
from pfl_plugins.potara.statistic import answers_of, bare, few

STATISTIC = "fishermerge"
SCALE = f"{STATISTIC}/scale"


class Information(Statistic):
    """Empirical diagonal Fisher information of both models: means of squared gradients of single samples. Keeps
    `fishermerge/<slot>/<site>/<part>`, float32; with dense weights the part is W."""

    def __init__(self, ctx: ClientContext, config: Config) -> None:
        adapter, full = ctx.adapter, config.space == "full"
        source = few(ctx, config.samples, STATISTIC)
        self.name, self.data, self.amount = STATISTIC, source, source.steps()
        self.scale = float(adapter.signature().get("scale", 1.0))
        self.wants = tuple(
            Want(slot, Keys("base/*/W") if full else adapter.trainable(slot), answers_of(slot), apart=True)
            for slot in (FEDERATED, LOCAL)
        )

    def add(self, acc: Any, view: View) -> tuple[dict[str, Tensor], int]:
        sums, count = acc if acc is not None else ({}, 0)
        for slot, gradients in view.gradients.items():
            for key, gradient in gradients.items():
                name, square = f"{STATISTIC}/{slot}/{bare(key)}", gradient.double().square()
                sums[name] = sums[name] + square if name in sums else square
        return sums, count + 1

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        sums, count = acc
        return {}, {
            **{key: (value / count).float().cpu() for key, value in sums.items()},
            SCALE: torch.tensor(self.scale),
        }


class FisherMerge(Personalizer):
    """Merges slots `global` and `local` of any objective that has both."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(adapters=("lora",) if self.config.space == "full" else ())

    def check(self, fed: Federation) -> None:
        for name in fed.backbones if self.config.space == "full" else ():
            size = fed.load(name).card.num_params
            if size > self.config.largest:
                raise UserError(
                    f"Dense Fisher information of '{name}' takes copies of its {size} params, and "
                    f"personalizer.largest is {self.config.largest}; choose personalizer.space=lora."
                )

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        return (Information(ctx, self.config),)

    def recipe(self, objective: Objective) -> InferenceRecipe:
        check_slots("fishermerge", objective)
        blend = Blend(("local", "federated"), ends(), self.params, lambda state: self.config.weight)
        # The dense result is in no slot: it is laid over the bare backbone.
        return InferenceRecipe(({LOCAL: 1.0} if self.config.space == "lora" else {},), "replied", blend=blend)

    def params(self, state: Tensors, weight: float | None) -> dict[str, Tensor]:
        share = self.config.weight if weight is None else weight
        known = {slot: _stripped(state, f"{STATISTIC}/{slot}/") for slot in (LOCAL, FEDERATED)}
        values = {slot: _stripped(state, f"{slot}/") for slot in (LOCAL, FEDERATED)}
        if self.config.space == "full":
            scale = float(state[SCALE])
            values = {slot: dense(tensors, scale) for slot, tensors in values.items()}
        values = {slot: {part: tensors[part] for part in known[LOCAL]} for slot, tensors in values.items()}
        found = merged(
            values[LOCAL],
            values[FEDERATED],
            (known[LOCAL], known[FEDERATED]),
            share,
            normalize=self.config.normalize,
            floor=self.config.floor,
        )
        slot = "base" if self.config.space == "full" else LOCAL
        head = merged_head(state, self.config.head, share, weight)
        return {**{f"{slot}/{part}": value.float() for part, value in found.items()}, **head}


def _stripped(state: Tensors, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def dense(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """`site/W` -> scale * B A, from `site/A` and `site/B`."""
    sites = [part.removesuffix("/A") for part in tensors if part.endswith("/A")]
    return {f"{site}/W": scale * tensors[f"{site}/B"].double() @ tensors[f"{site}/A"].double() for site in sites}
