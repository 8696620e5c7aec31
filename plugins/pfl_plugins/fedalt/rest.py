"""The server of FedALT: for each client the mean of the others' local adapters."""

from __future__ import annotations

from torch import Tensor

from pfl_platform.adapters.surfaces import renamed
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates
from pfl_platform.federation.groups import mean_for
from pfl_platform.federation.tasks import Program
from pfl_plugins.fedalt.config import RestConfig
from pfl_plugins.fedalt.mixer import LOCAL, ROW


class RestOfWorld(Aggregator):
    """State: each client's latest update by address. A client that did not take part in a round stays in the means with
    its latest one; a client that has never taken part is in none, and gets one."""

    def __init__(self, config: RestConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=(LOCAL,), replies=(ROW,))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        latest = {**state.tensors, **{update.client_id: update.address for update in updates}}
        weights = {name: self._weights(fed, latest, name) for name in latest}
        return ServerState(latest, {}, {"weights": weights})

    def _others(self, fed: Federation, latest: dict[str, str], client_id: str) -> list[str]:
        """Whose adapters may be in a client's mean, in the benchmark's order."""
        return [
            client.client_id
            for client in fed.clients
            if client.client_id in latest and (self.config.include_self or client.client_id != client_id)
        ]

    def _weights(self, fed: Federation, latest: dict[str, str], client_id: str) -> dict[str, float]:
        """What each client's params of the own backbone weigh for a client; it is what `show` draws."""
        same = [
            name for name in self._others(fed, latest, client_id) if fed.backbone_of[name] == fed.backbone_of[client_id]
        ]
        return {name: (1.0 / len(same) if name in same else 0.0) for name in latest}

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        """`(sum_j L_j - L_i) / (N - 1)`; nothing where there is no other."""
        latest = dict(state.tensors)
        others = [
            Update(name, fed.backbone_of[name], 1, latest[name], fed.store)
            for name in self._others(fed, latest, client_id)
        ]
        found = mean_for(fed.backbone_of[client_id], others, [1.0] * len(others))
        return renamed(found, LOCAL, ROW)
