"""How a personal model is evaluated and what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from pfl_platform.adapters.surfaces import Keys, Mix, Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample
from pfl_platform.training.surfaces import Output

Split: TypeAlias = Literal["test", "validation"]
"""Which of a task's held-out samples are scored."""


class Metric(ABC):
    """Scores one prediction, and all predictions of a task together. A cell's score is `total` times 100."""

    name: str

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the scores has to know; sentences that stand beside the results."""
        return ()

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> float:
        """Of one item, between 0 and 1."""

    def total(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> float:
        """Of a cell's items together (at least one): their mean score, unless the metric is no mean, such as a
        correlation, which may be negative. `predictions[i]` answers `samples[i]` and has its score."""
        return sum(item.score for item in predictions) / len(predictions)


class Prompts(Protocol):
    """A batch of questions as one backbone reads them, before anything is answered."""

    @property
    def backbone(self) -> Backbone: ...

    def forward(self, mix: Mix, taps: Sequence[str] = ()) -> Output:
        """One pass over the questions alone, without gradient. Of a backbone that goes on from the question, logits and
        what goes into its head are those of the last position, (rows, 1, ...); rows are padded on the left."""
        ...


RowMixes: TypeAlias = Callable[[Prompts, Tensors], "tuple[Mix, ...]"]
"""(a batch of questions, the client's state) -> the passes for these questions, with a weight per row."""


@dataclass(frozen=True)
class Blend:
    """A personal model that is made of two models of a client by weights, without training.

    ends: names of the two models, the one at weight 0 and the one at weight 1. keys: which keys of a client's state
    each of them is. params(state, weight): what is loaded, under keys of the state, in order to be the model at a
    weight; None: at the client's own weights, which the personalizer's statistics have left in the state.
    weight(state): the client's own weight, or the mean over its parts where it has several.
    """

    ends: tuple[str, str]
    keys: tuple[Keys, Keys]
    params: Callable[[Tensors, float | None], Tensors]
    weight: Callable[[Tensors], float]


@dataclass(frozen=True)
class InferenceRecipe:
    """What is evaluated: the mixes whose logits are added at every generated token (one pass in most methods).

    when: the client's model as it is after its local training, or after the round's reply, which holds what the server
    has made of all updates, has been taken in (see `Objective.replied`).

    rows: makes the passes for each batch of questions; `passes` is then only what stands for them where there is no
    question.

    blend: how the params of the evaluated model come from the client's state, where they are not there as they are.
    """

    passes: tuple[Mix, ...]
    when: Literal["trained", "replied"] = "trained"
    rows: RowMixes | None = None
    blend: Blend | None = None


@dataclass(frozen=True)
class Cell:
    """One entry of the client x task matrix: the task `task` of client `owner` (owner "" for unseen tasks)."""

    owner: str
    task: str

    @property
    def key(self) -> str:
        return f"{self.owner}:{self.task}"


@dataclass(frozen=True)
class Prediction:
    """One item: what was generated and what it scored (0 to 1)."""

    sample_id: str
    text: str
    score: float


@dataclass(frozen=True)
class CellResult:
    cell: Cell
    score: float  # 0 to 100; a correlation, -100 to 100
    predictions: Sequence[Prediction]
