"""Gradients of single samples at the federated and at the local model, and the weights that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.data import Sample
from pfl_platform.federation.components import ClientContext
from pfl_platform.rng import numpy_rng
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs, Pooled
from pfl_platform.training.surfaces import Loss, Statistic, View, Want
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.equations import UNDEFINED, Moments, common_damping, traces
from pfl_plugins.potara.objective import FEDERATED, LOCAL

STATISTIC = "potara"
WEIGHT = f"{STATISTIC}/weight"
SCALE = f"{STATISTIC}/scale"


def bare(key: str) -> str:
    """A key without its slot.

    >>> bare("local/layer0.q_proj/A")
    'layer0.q_proj/A'
    """
    return key.partition("/")[2]


def group_of(part: str, granularity: str) -> str:
    """Which weight the params `site/part` get.

    >>> [group_of("layer0.q_proj/A", granularity) for granularity in ("client", "factor", "module")]
    ['all', 'A', 'layer0.q_proj']
    """
    site, _, factor = part.rpartition("/")
    return {"client": "all", "factor": factor, "module": site}[granularity]


class Scale(Statistic):
    """Keeps `potara/scale`, the factor of the client's products B A; looks at no data."""

    def __init__(self, ctx: ClientContext) -> None:
        self.name, self.value = f"{STATISTIC} scale", float(ctx.adapter.signature().get("scale", 1.0))

    def add(self, acc: Any, view: View) -> Any:
        return acc

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        return {}, {SCALE: torch.tensor(self.value, dtype=torch.float64)}


class Gradients(Statistic):
    """One pass over a few training samples; per sample one backward pass through each of the two models.

    Keeps `potara/weight/<group>`, the federated model's weights, and for people `log/...`: the weight, the weight at
    ten times the damping (how much it depends on a number that the paper does not give), and the traces.
    """

    def __init__(self, ctx: ClientContext, config: MergeConfig) -> None:
        adapter = ctx.adapter
        source = few(ctx, config.samples, STATISTIC)
        self.name, self.config = STATISTIC, config
        self.data, self.amount = source, source.steps()
        self.wants = tuple(
            Want(slot, adapter.trainable(slot), answers_of(slot), apart=True) for slot in (FEDERATED, LOCAL)
        )

    def add(self, acc: Any, view: View) -> dict[str, Moments]:
        sums: dict[str, Moments] = acc if acc is not None else {}
        local = {bare(key): gradient for key, gradient in view.gradients[LOCAL].items()}
        for key, gradient in view.gradients[FEDERATED].items():
            part = bare(key)
            if part not in sums:
                sums[part] = Moments.zeros(gradient)
            sums[part].add(gradient, local[part])
        return sums

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        sums: dict[str, Moments] = acc
        damping = common_damping(sums, self.config.damping)
        weights = closed_form(sums, damping, self.config.granularity)
        whole = traces(sums, damping) if damping > 0 else None
        kept = {f"{WEIGHT}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in weights.items()}
        shown = {"weight": mean(weights)}
        shown["weight_at_10x_damping"] = mean(closed_form(sums, 10 * damping, self.config.granularity))
        if whole is not None:
            shown |= {"trace_federated": whole.a, "trace_local": whole.b, "trace_common": whole.c}
        return {}, {**kept, **{f"log/{name}": torch.tensor(value) for name, value in shown.items()}}


def closed_form(sums: Mapping[str, Moments], damping: float, granularity: str) -> dict[str, float]:
    """Group -> the federated model's weight. Without any gradient nothing is known, and it is 1/2."""
    groups: dict[str, dict[str, Moments]] = {}
    for part, moments in sums.items():
        groups.setdefault(group_of(part, granularity), {})[part] = moments
    return {name: traces(group, damping).weight() if damping > 0 else UNDEFINED for name, group in groups.items()}


def mean(weights: Mapping[str, float]) -> float:
    return sum(weights.values()) / len(weights)


def drawn(ctx: ClientContext, count: int) -> list[Sample]:
    """A random batch of the client's training samples: of its tasks that have begun, the same until another does."""
    pool = Pooled([task.train for task in ctx.tasks])
    order = numpy_rng(ctx.fed.seed, STATISTIC, ctx.client.client_id).permutation(len(pool))
    return [pool[int(index)] for index in order[:count]]


def few(ctx: ClientContext, count: int, name: str) -> Epochs:
    """One pass over the samples `drawn`, for the statistic of a name."""
    batch, seed = ctx.fed.config.training.batch_size, ctx.fed.seed
    return Epochs(drawn(ctx, count), batch, seed, f"{name} {ctx.client.client_id}", shuffle=False)


def answers_of(slot: str) -> Loss:
    """The answers' loss of the model that is one slot, without dropout."""
    return answers_under({slot: 1.0}, dropout=False)


def keys_of(slot: str) -> Keys:
    return Keys(f"{slot}/*")


def weights_in(state: Tensors) -> dict[str, float]:
    """The weights that the statistic has left in a client's state."""
    found: dict[str, Tensor] = Keys(f"{WEIGHT}/*").of(state)
    return {key.removeprefix(f"{WEIGHT}/"): float(value) for key, value in found.items()}
