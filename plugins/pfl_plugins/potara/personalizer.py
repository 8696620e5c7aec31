"""The personalizer: federated and local adapter become one, in place of the local one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Blend, InferenceRecipe
from pfl_platform.federation.components import ClientContext, Needs, Objective, Personalizer
from pfl_platform.lowrank.decompose import truncate
from pfl_platform.lowrank.deltas import Delta, weighted_sum
from pfl_platform.training.surfaces import Statistic
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.equations import merged
from pfl_plugins.potara.objective import FEDERATED, LOCAL
from pfl_plugins.potara.statistic import Gradients, bare, group_of, keys_of, mean, weights_in


class Merge(Personalizer):
    """Merges slots `global` and `local` of any objective that has both. No third adapter is held: the merged params
    take the local ones' place while the client is evaluated."""

    def __init__(self, config: MergeConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        """Deltas are merged as `B A`; whatever else an adapter has would be left out."""
        return Needs(adapters=("lora",) if self.config.space == "delta" else ())

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        return (Gradients(ctx, self.config),) if self.config.weights == "closed_form" else ()

    def recipe(self, objective: Objective) -> InferenceRecipe:
        check_slots("potara", objective)
        blend = Blend(("local", "federated"), (keys_of(LOCAL), keys_of(FEDERATED)), self.params, self.weight)
        return InferenceRecipe(({LOCAL: 1.0},), "replied", blend=blend)

    def weight(self, state: Tensors) -> float:
        found = weights_in(state)
        return mean(found) if found else self.config.weight

    def params(self, state: Tensors, weight: float | None) -> dict[str, Tensor]:
        """The merged params under the local slot's keys; `weight` takes the place of the client's own."""
        own = weights_in(state) if weight is None and self.config.weights == "closed_form" else {}
        local, federated = keys_of(LOCAL).of(state), keys_of(FEDERATED).of(state)

        def of(part: str) -> float:
            if weight is not None:
                return weight
            return own.get(group_of(part, self.config.granularity), self.config.weight)

        if self.config.space == "delta":
            return in_deltas(federated, local, of)
        return {
            key: merged(federated[f"{FEDERATED}/{bare(key)}"], value, of(bare(key))) for key, value in local.items()
        }


def check_slots(personalizer: str, objective: Objective) -> None:
    """Raises `UserError` when the objective lacks one of the two slots that a personalizer merges."""
    names = {slot.name for slot in objective.slots}
    for slot in (FEDERATED, LOCAL):
        if slot not in names:
            raise UserError(
                f"The personalizer '{personalizer}' merges the slots '{FEDERATED}' and '{LOCAL}', but the objective "
                f"has no '{slot}'; choose objective=potara."
            )


def in_deltas(
    federated: Mapping[str, Tensor], local: Mapping[str, Tensor], weight: Callable[[str], float]
) -> dict[str, Tensor]:
    """`lambda B_g A_g + (1 - lambda) B_l A_l`, cut back to the adapter's rank, as A and B of the local slot."""
    found: dict[str, Tensor] = {}
    for key, down in local.items():
        if not key.endswith("/A"):
            continue
        site = bare(key).rpartition("/")[0]
        places = [(federated, f"{FEDERATED}/{site}"), (local, f"{LOCAL}/{site}")]
        pair = [Delta(tensors[f"{place}/B"], tensors[f"{place}/A"], name=place) for tensors, place in places]
        share = weight(f"{site}/A")
        short = truncate(weighted_sum(pair, [share, 1.0 - share]), down.shape[0]).delta
        found |= {f"{LOCAL}/{site}/A": short.down.contiguous(), f"{LOCAL}/{site}/B": short.up.contiguous()}
    return found
