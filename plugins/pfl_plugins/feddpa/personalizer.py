"""The weight of FedDPA's local adapter in evaluation: for each question by its similarity to the client's samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Mix, Tensors
from pfl_platform.backbones import IGNORE, Encoded
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import InferenceRecipe, Prompts
from pfl_platform.federation.components import ClientContext, Federation, Objective, Personalizer
from pfl_platform.training.surfaces import Source, Statistic, View
from pfl_plugins.feddpa.config import WeightConfig
from pfl_plugins.feddpa.equations import instance_weights
from pfl_plugins.feddpa.objective import GLOBAL, LOCAL, FedDPA

OWN = "feddpa/own"
"""Private: e(x_i) of some of the client's own questions, (instances, d)."""


class InstanceWeights(Personalizer):
    """`alpha(x)` of the local adapter and `1 - alpha(x)` of the global one, or the objective's alpha for all."""

    def __init__(self, config: WeightConfig) -> None:
        self.config = config

    def check(self, fed: Federation) -> None:
        """A question has an embedding that does not depend on the answer."""
        for name in fed.backbones:
            if self.config.weights == "dynamic" and fed.load(name).answer_side:
                raise UserError(
                    f"FedDPA's dynamic weights need the last state of a question, but '{name}' reads questions apart "
                    "from answers; set personalizer.weights=static."
                )

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        if self.config.weights == "static":
            return ()
        batches = math.ceil(self.config.instances / ctx.fed.config.training.batch_size)
        # Never more than the round has: later batches are of data that has not arrived.
        return (OwnQuestions(self.config.instances, ctx.source, min(batches, ctx.local_steps)),)

    def recipe(self, objective: Objective) -> InferenceRecipe:
        if not isinstance(objective, FedDPA):
            raise UserError("The personalizer 'feddpa' weighs the two adapters of the objective 'feddpa' only.")
        return InferenceRecipe((objective.mix,), rows=self.mixed if self.config.weights == "dynamic" else None)

    def mixed(self, prompts: Prompts, state: Tensors) -> tuple[Mix, ...]:
        """The mix of a batch of questions, a weight for each row."""
        head = prompts.backbone.head
        output = prompts.forward({LOCAL: 1.0}, taps=(head,))
        alpha = instance_weights(embeddings(output.taps[head], output.encoded), state[OWN], self.config.w_max)
        alpha = 1.0 - alpha if self.config.official_sign else alpha
        return ({LOCAL: alpha, GLOBAL: 1.0 - alpha},)


class OwnQuestions(Statistic):
    """e(x_i): embeddings of questions that the client has trained on in this round, by its local adapter."""

    name = "feddpa"

    def __init__(self, instances: int, data: Source, amount: int) -> None:
        self.instances, self.data, self.amount = instances, data, amount

    def add(self, acc: list[Tensor] | None, view: View) -> list[Tensor]:
        head = view.backbone().head
        output = view.forward({LOCAL: 1.0}, grad=False, train=False, taps=(head,))
        return [*(acc or []), embeddings(output.taps[head], output.encoded).float().cpu()]

    def finish(
        self, acc: list[Tensor] | None, private: Tensors, rng: Callable[..., torch.Generator]
    ) -> tuple[Tensors, Mapping[str, Tensor]]:
        return {}, {OWN: torch.cat(acc or [])[: self.instances]}


def embeddings(states: Tensor, encoded: Encoded) -> Tensor:
    """The state that is before the head at the last token of each row's question, (rows, d).

    states: (rows, positions, d), or (rows, d) of a backbone that answers in one step. In a batch with answers the
    question ends before the first supervised token; without, rows are padded on the left.
    """
    if states.dim() == 2:
        return states
    picked = encoded.labels[:, 1:] != IGNORE
    last = states.shape[1] - 1
    ends = torch.where(
        picked.any(dim=1), picked.int().argmax(dim=1), torch.full_like(picked[:, 0], last, dtype=torch.int64)
    )
    return states[torch.arange(len(states), device=states.device), ends.to(states.device)]
