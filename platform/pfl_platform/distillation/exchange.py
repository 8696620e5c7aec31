"""What a server does with predictions: asks models for them, and makes targets for students of any backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from pfl_platform.adapters.surfaces import Mix
from pfl_platform.distillation.predictions import Predicted, Predictions
from pfl_platform.distillation.public import STAGE, PublicSet, measuring
from pfl_platform.distillation.targets import Answers, Mean, Targets, Teacher, combined
from pfl_platform.distillation.vocabularies import between, width
from pfl_platform.federation.components import Federation, Update
from pfl_platform.federation.tasks import Address, Program
from pfl_platform.training.streams import Epochs


class Exchange:
    """The public set of one round, as models of several backbones answer it.

    top_k, temperature: of the predictions (see `Predictions`); top_k also of the targets made of them.
    """

    def __init__(self, fed: Federation, public: PublicSet, *, top_k: int, temperature: float = 1.0) -> None:
        self.fed, self.public = fed, public
        self.top_k, self.temperature = top_k, temperature
        self._answers: dict[str, Answers] = {}

    @cached_property
    def in_order(self) -> Epochs:
        """The samples for a pass without gradient."""
        return self.public.in_order(min(self.fed.config.evaluation.batch_size, len(self.public)))

    def answers(self, backbone: str) -> Answers:
        if backbone not in self._answers:
            self._answers[backbone] = self.public.answers(self.fed.load(backbone))
        return self._answers[backbone]

    def statistic(
        self, mix: Mix, *, temperature: float | None = None, top_k: int | None = None, variance: bool = False
    ) -> Predictions:
        """What a model has to measure."""
        return Predictions(
            mix,
            self.in_order,
            self.in_order.steps(),
            top_k=self.top_k if top_k is None else top_k,
            temperature=self.temperature if temperature is None else temperature,
            variance=variance,
        )

    def asked(
        self, models: Iterable[tuple[str, str, Address]], statistic: Predictions, round_index: int, stage: str = STAGE
    ) -> Program[dict[str, Predicted]]:
        """Predictions of models (name, host, address of its params), by name. One model after the other is loaded into
        the one backbone of its host."""
        tasks = [
            measuring(self.fed, self.public, name, round_index, host, address, (statistic,), stage=stage)
            for name, host, address in models
        ]
        outcomes = (yield tasks) if tasks else {}
        found = {}
        for task in tasks:
            found[task.actor] = Predicted.read(self.fed.store.get(outcomes[task.actor].message), statistic.name)
        return found

    def asked_clients(
        self, updates: Iterable[Update], statistic: Predictions, round_index: int, stage: str = STAGE
    ) -> Program[dict[str, Predicted]]:
        """Predictions of the models that clients have sent, by client."""
        names = {f"teacher {update.client_id}": update for update in updates}
        models = [(name, self.fed.host_of(update.client_id), update.address) for name, update in names.items()]
        found = yield from self.asked(models, statistic, round_index, stage)
        return {update.client_id: found[name] for name, update in names.items()}

    def teacher(self, predicted: Predicted, source: str, target: str, weights: Tensor | float = 1.0) -> Teacher:
        """A model of the backbone `source` as a student of the backbone `target` sees it."""
        load = self.fed.load
        places = None if source == target else self.answers(target).places(self.answers(source))
        return Teacher(predicted, places, between(load(source), load(target)), weights)

    def targets(self, teachers: Sequence[Teacher], target: str, mean: Mean = "logits") -> Targets:
        """What students of a backbone learn from some teachers."""
        return combined(teachers, self.answers(target).counts, width(self.fed.load(target)), self.top_k, mean)


def ordered(updates: Iterable[Update]) -> list[Update]:
    """The updates by their clients' names. Sums depend on the order in their last bits, and where a student agrees with
    its teachers already, Adam makes steps of them."""
    return sorted(updates, key=lambda update: update.client_id)


def by_backbone(fed: Federation, updates: Iterable[Update]) -> Mapping[str, list[Update]]:
    """The updates of each backbone of which there are any, the smallest backbone first; in each as `ordered`."""
    found: dict[str, list[Update]] = {}
    for update in ordered(updates):
        found.setdefault(update.backbone, []).append(update)
    return {name: found[name] for name in fed.backbones if name in found}
