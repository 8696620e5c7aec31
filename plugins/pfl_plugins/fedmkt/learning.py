"""How a client or the server learns from received predictions."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Tensors
from pfl_platform.distillation.exchange import Exchange
from pfl_platform.distillation.losses import towards
from pfl_platform.distillation.predictions import Predictions
from pfl_platform.distillation.public import PublicSet
from pfl_platform.distillation.targets import Targets
from pfl_platform.federation.components import Federation
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.surfaces import View
from pfl_plugins.fedmkt.config import Config
from pfl_plugins.fedmkt.equations import selected

SLOT = "local"
KNOWLEDGE, TAUGHT = "knowledge", "taught"
MIX: Mix = {SLOT: 1.0}


def measure(fed: Federation, config: Config, keep: tuple[str, ...] = ()) -> Predictions:
    """What clients and the server say about the public set."""
    source = Exchange(fed, PublicSet.of(fed, config.samples), top_k=config.top_k).in_order
    return Predictions(
        MIX,
        source,
        source.steps(),
        top_k=config.top_k,
        dtype=torch.float16,
        keep=keep,
        name=KNOWLEDGE,
        samples=config.samples,
    )


def message(targets: Targets, losses: Tensor) -> dict[str, Tensor]:
    """Predictions for a learner, as keys `taught/...`: log-probabilities in half precision, and the teacher's losses.
    Which tokens are known is not sent when all are."""
    parts: dict[str, Tensor | None] = {
        "logp": targets.probs.log().to(torch.float16),
        "ids": targets.ids,
        "losses": losses,
        "known": None if bool(targets.known.all()) else targets.known,
    }
    return {f"{TAUGHT}/{part}": value for part, value in parts.items() if value is not None}


class Lesson:
    """`lambda LM + (1 - lambda) CE(selected predictions, learner)` on the public set, per row.

    Of CE the part that does not depend on the learner is left out, which makes it a divergence. What is selected are
    the samples on which the received predictions have the lower loss; with its own, which would be selected
    elsewhere, a learner agrees already.
    """

    def __init__(self, fed: Federation, config: Config, backbone: str) -> None:
        self._fed, self._config, self._backbone = fed, config, backbone

    @cached_property
    def public(self) -> PublicSet:
        return PublicSet.of(self._fed, self._config.samples)

    @cached_property
    def counts(self) -> Tensor:
        return self.public.answers(self._fed.load(self._backbone)).counts

    def read(self, refs: Tensors) -> Targets:
        probs = refs[f"{TAUGHT}/logp"].float().exp()
        known = refs.get(f"{TAUGHT}/known")
        everything = torch.ones(len(probs), dtype=torch.bool)
        return Targets(self.counts, probs, refs.get(f"{TAUGHT}/ids"), everything if known is None else known)

    def __call__(self, view: View) -> Tensor:
        config, refs = self._config, view.refs
        if f"{TAUGHT}/logp" not in refs:  # nothing has arrived: a loss of 0 that has a gradient
            zero = torch.stack([p.sum() for p in view.params.values() if p.requires_grad]).sum() * 0.0
            return zero.expand(len(view.samples))
        output = view.forward(MIX)
        learnt = selected(refs[f"{TAUGHT}/losses"], refs.get(f"{KNOWLEDGE}/losses"))
        rows = towards(view, output, self.public.numbers, self.read(refs), tail=config.tail, samples=learnt)
        if config.official_no_lm:
            return rows
        return config.lm_weight * answer_loss(output) + (1.0 - config.lm_weight) * rows
