"""What a rule needs to be measured at the clients, beside the adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.data import Sample
from pfl_platform.federation.components import ClientContext, Objective, Update
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Statistic


class Measure(ABC):
    """A statistic of the clients' data, and how the server finds its parts in an update."""

    @property
    @abstractmethod
    def keys(self) -> Keys:
        """What it sends."""

    def refused(self, space: str) -> str | None:
        """Why clients cannot measure what the rule needs in a space, as a clause; None where they can."""
        return None

    @abstractmethod
    def statistic(self, ctx: ClientContext, objective: Objective) -> Statistic:
        """What runs at a client, on the model that it has just trained."""

    def address(self, update: Update, name: str, module: str) -> str:
        """Where `read` finds it; equal for modules that have it in common."""
        return f"{name}/{module}"

    @abstractmethod
    def read(self, update: Update, name: str, module: str) -> Tensor:
        """One statistic of one module (`slot/site`); see `Inputs.statistic`. Raises `UserError` when there is none."""


def held_out(ctx: ClientContext, samples: int, name: str) -> Epochs:
    """A pass over at most `samples` of a client's validation samples, of its tasks that have begun in turn; over
    training samples where it has no validation. Never over test data."""
    tasks = ctx.tasks
    parts = [task.validation for task in tasks] if any(task.validation for task in tasks) else [t.train for t in tasks]
    longest = max(len(part) for part in parts)
    chosen: list[Sample] = [part[i] for i in range(longest) for part in parts if i < len(part)]
    batch, seed = ctx.fed.config.training.batch_size, ctx.fed.seed
    return Epochs(chosen[:samples], batch, seed, f"{name} {ctx.client.client_id}", shuffle=False)
