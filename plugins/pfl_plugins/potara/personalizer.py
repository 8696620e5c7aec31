"""The personalizer: federated and local adapter become one, in place of the local one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pfl_platform.adapters.heads import HEADS, as_own, head_of
from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Blend, InferenceRecipe
from pfl_platform.federation.components import ClientContext, Needs, Objective, Personalizer
from pfl_platform.lowrank.decompose import truncate
from pfl_platform.lowrank.deltas import Delta, weighted_sum
from pfl_platform.training.surfaces import Statistic
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.equations import merged
from pfl_plugins.potara.objective import FEDERATED, LOCAL
from pfl_plugins.potara.statistic import SCALE, Gradients, Scale, bare, group_of, keys_of, mean, weights_in


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
        scale = (Scale(ctx),) if self.config.rank == "exact" else ()
        return (*scale, Gradients(ctx, self.config)) if self.config.weights == "closed_form" else scale

    def recipe(self, objective: Objective) -> InferenceRecipe:
        check_slots("potara", objective)
        blend = Blend(("local", "federated"), ends(), self.params, self.weight)
        # The exact sum is in no slot: it is laid over the bare backbone.
        return InferenceRecipe(({LOCAL: 1.0} if self.config.rank == "adapter" else {},), "replied", blend=blend)

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

        head = merged_head(state, self.config.head, self.weight(state) if weight is None else weight, weight)
        if self.config.space == "delta":
            if self.config.rank == "exact":
                return {**exactly(federated, local, of, float(state[SCALE])), **head}
            return {**in_deltas(federated, local, of), **head}
        return {
            **{
                key: merged(federated[f"{FEDERATED}/{bare(key)}"], value, of(bare(key))) for key, value in local.items()
            },
            **head,
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


def ends() -> tuple[Keys, Keys]:
    """The keys of the local and of the federated model, each with its head."""
    return Keys(f"{LOCAL}/*", *HEADS.patterns), Keys(f"{FEDERATED}/*", *head_of(FEDERATED).patterns)


def merged_head(state: Tensors, choice: str, share: float, asked: float | None) -> dict[str, Tensor]:
    """The head of the model at a weight, under the client's keys; {} where there is one head, or none. asked: the
    weight that was asked for; at 0 and 1 each model has its own head, whatever the choice."""
    heads = HEADS.of(state)
    federated = head_of(FEDERATED).of(state)
    if not federated:
        return {}
    weight = asked if asked in (0.0, 1.0) else {"merged": share, "local": 0.0, "federated": 1.0}[choice]
    assert weight is not None
    theirs = as_own(heads, FEDERATED)
    return {key: merged(federated[own], value, weight) for (key, value), own in zip(heads.items(), theirs, strict=True)}


def exactly(
    federated: Mapping[str, Tensor], local: Mapping[str, Tensor], weight: Callable[[str], float], scale: float
) -> dict[str, Tensor]:
    """`scale (lambda B_g A_g + (1 - lambda) B_l A_l)`, of rank 2r, as dense deltas `base/site/W`."""
    found: dict[str, Tensor] = {}
    for key in local:
        if key.endswith("/A"):
            site = bare(key).rpartition("/")[0]
            share = weight(f"{site}/A")
            theirs, own = (
                tensors[f"{slot}/{site}/B"].double() @ tensors[f"{slot}/{site}/A"].double()
                for tensors, slot in ((federated, FEDERATED), (local, LOCAL))
            )
            found[f"base/{site}/W"] = (scale * (share * theirs + (1.0 - share) * own)).float()
    return found


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
