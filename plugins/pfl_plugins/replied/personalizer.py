"""The personalizer `replied`."""

from __future__ import annotations

from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation.components import Objective, Personalizer


class Replied(Personalizer):
    """The objective's own mix, over the params of the round's reply."""

    def recipe(self, objective: Objective) -> InferenceRecipe:
        return InferenceRecipe((objective.mix,), when="replied")
