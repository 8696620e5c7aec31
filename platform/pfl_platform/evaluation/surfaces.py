"""How a personal model is evaluated and what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pfl_platform.adapters.surfaces import Mix
from pfl_platform.data import Sample


class Metric(ABC):
    """Scores one prediction. A task's score is the mean over its items, times 100."""

    name: str

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> float:
        """Between 0 and 1."""


@dataclass(frozen=True)
class InferenceRecipe:
    """What is evaluated: the mixes whose logits are added at every generated token (one pass in most methods)."""

    passes: tuple[Mix, ...]


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
    score: float  # 0 to 100
    predictions: Sequence[Prediction]
