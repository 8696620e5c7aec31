"""HETLoRA's client: trains its part of the global adapter, and cuts its rank when the tail has lost weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, Tensors
from pfl_platform.federation.components import ClientContext, Needs, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.hetlora.config import Config
from pfl_plugins.hetlora.equations import cut, extended, kept_rank, rank_of, tail, zeroed

SLOT = "global"
FACTORS = Keys(f"{SLOT}/*/A", f"{SLOT}/*/B")
RANK, TAIL = "log/rank", "hetlora/tail"
"""Private scalars: the rank, and the norm of the tail, as a round's training begins."""


class HetLora(Objective):
    """One slot in the client's own rank. Pruned components are zero in it, and do not travel."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(adapters=("lora",))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(SLOT),)

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(SLOT)

    @property
    def mix(self) -> Mix:
        return {SLOT: 1.0}

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """All clients of a rank start from the same numbers, B = 0; the tail weighs nothing yet."""
        first = ctx.start(SLOT)
        return {**first, RANK: torch.tensor(float(rank_of(first))), TAIL: torch.tensor(0.0)}

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """The global adapter in the rank that the client has now; components that the server does not have stay."""
        own = FACTORS.of(state)
        rank = rank_of(own)
        taken = {key: extended(key, value, own[key]) for key, value in cut(reply, rank).items()}
        begun = tail({**own, **taken}, kept_rank(rank, self.config.gamma, self.config.r_min))
        return {**state, **taken, RANK: torch.tensor(float(rank)), TAIL: begun}

    def send(self, tensors: Tensors) -> Mapping[str, Tensor]:
        return cut(tensors, rank_of(tensors))

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        penalty = self.tail_weight if self.config.lam > 0 else None
        step = Step(ctx.adapter.trainable(SLOT), answers_under(self.mix), ctx.afresh(SLOT), penalty)
        return (ctx.phase(step, after=self.pruned),)

    def start(self, refs: Tensors) -> int:
        """The first component of the tail."""
        return kept_rank(int(refs[RANK]), self.config.gamma, self.config.r_min)

    def tail_weight(self, params: Mapping[str, Tensor], refs: Tensors) -> Tensor | None:
        """`lambda ||B[:, gamma r:]|| ||A[gamma r:, :]||`, summed over the adapted maps."""
        if self.start(refs) == int(refs[RANK]):
            return None
        value = self.config.lam * tail(FACTORS.of(params), self.start(refs))
        return value.detach().requires_grad_() if self.config.official_detached else value

    def pruned(self, params: dict[str, Tensor], refs: Tensors) -> Mapping[str, Tensor]:
        """The tail is cut off when its norm is smaller than it was when training began."""
        factors = FACTORS.of(params)
        start = self.start(refs)
        if not self.config.prune or start == int(refs[RANK]) or float(tail(factors, start)) >= float(refs[TAIL]):
            return params
        return {**params, **zeroed(factors, start)}
