"""The client's sketch of its data: the decayed, sanitised last-layer gradient (4.1, Eq. 1-3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from pfl_platform.adapters.surfaces import Mix, SlotLayer, Tensors
from pfl_platform.backbones import shape_of
from pfl_platform.rng import torch_rng
from pfl_platform.training.surfaces import Planned, Statistic, View
from pfl_plugins.fedmosaic.config import RelaConfig
from pfl_plugins.fedmosaic.equations import ema, kept_coordinates, kept_rows, sanitise
from pfl_plugins.fedmosaic.sketch import last_layer_gradient

SKETCH = "rela/gradient"
"""Comparable between all clients."""
OWN_SKETCH = "rela/own_gradient"
"""Comparable only between clients with the same backbone."""
EMA = "rela/ema"


class ClientGradient(Statistic):
    """g_i of Eq. 1 on every m-th batch, averaged over the round, decayed by Eq. 2 and sanitised by Eq. 3.

    `model` is W_s, run bare; None takes the training model under its mix instead. Coordinates that are never sent
    are never computed: mean, EMA and noise act on each coordinate alone, so keeping the chosen ones from the start
    changes nothing."""

    name = "rela"

    def __init__(self, config: RelaConfig, model: str | None, mix: Mix, seed: int) -> None:
        self.config = config
        self.every = config.every
        self._model = model
        self._mix = mix
        self._seed = seed

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        backbone = plan.load(self._model)
        rows, columns = _shape(backbone.module(backbone.last_linear))
        config = self.config
        if self._model is None and config.projection:
            return {SKETCH: plan.tensor(config.projection)}
        key = OWN_SKETCH if self._model is None else SKETCH
        if config.subsample == "official_rows":
            return {key: plan.tensor(kept_rows(rows, config.keep), columns)}
        return {key: plan.tensor(kept_rows(rows * columns, config.keep))}

    def add(self, acc: tuple[Tensor, int] | None, view: View) -> tuple[Tensor, int]:
        gradient = self._gradient(view)
        if acc is None:
            return gradient, 1
        total, count = acc
        return total + gradient, count + 1

    def _gradient(self, view: View) -> Tensor:
        """The kept part of dL/dW of the last output projection, float32 on the CPU: (kept,), or (kept rows,
        columns)."""
        backbone = view.backbone(self._model)
        taps = (backbone.final_norm, backbone.last_linear)
        output = view.forward(
            self._mix if self._model is None else {}, grad=False, train=False, taps=taps, backbone=self._model
        )
        norm, head = backbone.module(backbone.final_norm), backbone.module(backbone.head)
        rows, columns = _shape(backbone.module(backbone.last_linear))
        use = self.config.gradient_rows or None
        official = self.config.subsample == "official_rows"
        return last_layer_gradient(
            output.taps[backbone.final_norm][:use],
            output.taps[backbone.last_linear][:use],
            output.encoded.labels[:use],
            norm_weight=cast(Tensor, norm.weight),
            eps=_eps(norm),
            head_weight=cast(Tensor, head.weight),
            head_bias=cast("Tensor | None", getattr(head, "bias", None)),
            jacobian=self.config.jacobian,
            rows=kept_rows(rows, self.config.keep) if official else None,
            coordinates=None if official else _kept(rows * columns, self.config.keep, self._seed),
        ).cpu()

    def finish(
        self, acc: tuple[Tensor, int] | None, private: Tensors, rng: Callable[..., torch.Generator]
    ) -> tuple[Tensors, Tensors]:
        config = self.config
        if acc is None:
            return {}, {EMA: private[EMA]} if EMA in private else {}
        gradient = acc[0] / acc[1]

        def noisy(values: Tensor, scale: float) -> Tensor:
            return sanitise(values, torch.arange(values.numel()), scale, rng("noise")).view_as(values)

        if config.sanitize_before_ema:
            # Noise on each of n gradients is, after their mean, noise of scale mu / sqrt(n).
            gradient = noisy(gradient, config.mu / acc[1] ** 0.5)
        decayed = gradient
        if config.ema == "on":
            decayed = ema(private.get(EMA), gradient, config.alpha, config.ema_start)
        sent = decayed if config.sanitize_before_ema else noisy(decayed, config.mu)
        kept = {EMA: decayed}
        if self._model is not None:
            return {SKETCH: sent}, kept
        if config.projection:
            return {SKETCH: projected(sent.flatten(), config.projection, self._seed)}, kept
        return {OWN_SKETCH: sent}, kept


def projected(vector: Tensor, size: int, seed: int) -> Tensor:
    """A seeded sparse projection of a vector of any length to `size` values: each coordinate goes to one random
    place with a random sign (a count sketch), which keeps inner products of vectors of *equal* length in
    expectation."""
    generator = torch_rng(seed, "fedmosaic", "projection", vector.numel())
    places = torch.randint(size, (vector.numel(),), generator=generator)
    signs = torch.randint(2, (vector.numel(),), generator=generator) * 2 - 1
    return torch.zeros(size, dtype=vector.dtype).index_add(0, places, vector * signs)


@lru_cache(maxsize=8)
def _kept(size: int, fraction: float, seed: int) -> Tensor:
    return kept_coordinates(size, fraction, seed)


def _shape(last: nn.Module) -> tuple[int, int]:
    return shape_of(last.base if isinstance(last, SlotLayer) else last)


def _eps(norm: nn.Module) -> float:
    """RMSNorm's epsilon under the names that transformers and torch use."""
    return float(cast(float, getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))))
