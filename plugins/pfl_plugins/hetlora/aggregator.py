"""HETLoRA's server: pads every client's factors to the largest rank, weighs them by norm, and truncates for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates, combine
from pfl_platform.federation.groups import sizes
from pfl_platform.federation.tasks import Address, Program
from pfl_plugins.hetlora.config import AggregateConfig
from pfl_plugins.hetlora.equations import cut, extended, modules, norms, padded, rank_of, shares

FACTORS = Keys("*/layer*/A", "*/layer*/B")


class ByNorm(Aggregator):
    """State: per backbone the global factors by address, and each client's rank as it last sent it. Components that
    nobody of a round has keep what they had."""

    def __init__(self, config: AggregateConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=("*",), replies=("*",), adapters=("lora",), equal=())

    def check(self, fed: Federation) -> None:
        """The clients of a backbone may differ in rank, and in nothing else that factors depend on."""
        for backbone in fed.backbones:
            first, *rest = [client.client_id for client in fed.clients if fed.backbone_of[client.client_id] == backbone]
            for other in rest:
                ours, theirs = (dict(fed.adapter_of(name).signature()) for name in (first, other))
                for key in sorted(ours.keys() - {"r"}):
                    if ours[key] != theirs[key]:
                        raise UserError(
                            f"Factors are averaged over clients that differ in rank only, but the adapter of '{first}' "
                            f"has {key}={ours[key]} and that of '{other}' {key}={theirs[key]}; give them the same."
                        )

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        addresses: dict[str, Address] = dict(state.tensors)
        ranks: dict[str, int] = dict(state.meta.get("ranks", {}))
        weights: dict[str, dict[str, float]] = {}
        for backbone in sorted({update.backbone for update in updates}):
            group = [update for update in updates if update.backbone == backbone]
            tensors = [update.tensors(FACTORS) for update in group]
            ranks |= {update.client_id: rank_of(part) for update, part in zip(group, tensors, strict=True)}
            former = fed.store.get(addresses[backbone]) if backbone in addresses else {}
            by_module = self._weights(group, tensors)
            addresses[backbone] = fed.store.put(merged(tensors, by_module, former))
            shares = {
                update.client_id: sum(row[k] for row in by_module.values()) / len(by_module)
                for k, update in enumerate(group)
            }
            weights |= {name: shares for name, own in fed.backbone_of.items() if own == backbone}
        return ServerState(addresses, {"ranks": ranks}, {"ranks": ranks, "weights": weights})

    def _weights(self, group: Sequence[Update], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
        """Module -> the clients' weights."""
        names = modules(tensors[0])
        if self.config.weighting != "norm":
            common = shares(sizes(group, examples=self.config.weighting == "examples"))
            return dict.fromkeys(names, common)
        found = [norms(part) for part in tensors]
        if self.config.per == "client":
            whole = shares([sum(value**2 for value in each.values()) ** 0.5 for each in found])
            return dict.fromkeys(names, whole)
        return {name: shares([each[name] for each in found]) for name in names}

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        """The first components, as many as the client has."""
        address = state.tensors.get(fed.backbone_of[client_id])
        if address is None:
            return {}
        first = int(fed.adapter_of(client_id).signature()["r"])
        return cut(fed.store.get(address), state.meta["ranks"].get(client_id, first))


def merged(
    tensors: Sequence[Mapping[str, Tensor]], weights: Mapping[str, Sequence[float]], former: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`sum_k w_k` of the factors, padded with zeros to the largest rank among them; further components are those of
    `former`."""
    found: dict[str, Tensor] = {}
    for module, row in weights.items():
        for key in (f"{module}/A", f"{module}/B"):
            rank = max(part[f"{module}/A"].shape[0] for part in tensors)
            (value,) = combine(({key: padded(part[key], rank, key)} for part in tensors), row).values()
            found[key] = extended(key, value, former[key]) if key in former else value
    return found
