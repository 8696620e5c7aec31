"""RELA, the server of FedMosaic: a global adapter for each client, weighted by relevance (4.1, Eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, renamed, shared
from pfl_platform.errors import UserError
from pfl_platform.federation.components import (
    Aggregator,
    ClientContext,
    Federation,
    Needs,
    Objective,
    ServerState,
    Updates,
    combine,
)
from pfl_platform.federation.tasks import Program, Share
from pfl_platform.training.surfaces import Statistic
from pfl_plugins.fedmosaic.config import RelaConfig
from pfl_plugins.fedmosaic.equations import cosine_matrix, relevance_weights, renormalised
from pfl_plugins.fedmosaic.relevance import OWN_SKETCH, SKETCH, ClientGradient


class Rela(Aggregator):
    """State: each client's latest update by address, and the weights w_ij. A client that did not take part in a
    round stays in the sums with its latest update."""

    def __init__(self, config: RelaConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        """Sketches read the hidden states behind an answer's tokens, in the row of the question."""
        return Needs(consumes=("local",), replies=("global",), continues=self._weighs)

    @property
    def _weighs(self) -> bool:
        return self.config.weights == "relevance"

    @property
    def asks(self) -> tuple[Share, ...]:
        if not self._weighs:
            return ()
        return (Share(Keys(SKETCH), "all"), Share(Keys(OWN_SKETCH), "backbone"))

    def runs(self, fed: Federation) -> tuple[str, ...]:
        """W_s, the smallest backbone unless another is named."""
        if not self._weighs or self.config.gradient_from == "training":
            return ()
        return (self.config.small_model or fed.backbones[0],)

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        if not self._weighs:
            return ()
        model = next(iter(self.runs(ctx.fed)), None)
        return (ClientGradient(self.config, model, objective.mix, ctx.fed.seed),)

    def work(self, clients: int, sent: Mapping[str, int]) -> float:
        """All cosines, and a weighted sum of all adapters for each client."""
        sketch = sum(size for key, size in sent.items() if key in (SKETCH, OWN_SKETCH))
        adapter = sum(size for key, size in sent.items() if key not in (SKETCH, OWN_SKETCH))
        return 2.0 * clients * clients * (sketch + adapter)

    def check(self, fed: Federation) -> None:
        """Cosines per column need a sketch that is a matrix."""
        rows = self.config.subsample == "official_rows" and not self.config.projection
        if self.config.similarity == "official_columns" and not rows:
            raise UserError(
                "aggregator.similarity 'official_columns' reads sketches as matrices; "
                "set aggregator.subsample=official_rows with it, and no aggregator.projection."
            )

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        latest = {**state.tensors, **{update.client_id: update.address for update in updates}}
        order = [client.client_id for client in fed.clients if client.client_id in latest]
        if not order:
            return state
        weights = self._weights(fed, latest, order)
        table = {
            client: dict(zip(order, row, strict=True)) for client, row in zip(order, weights.tolist(), strict=True)
        }
        return ServerState(latest, {"weights": table}, {"weights": table})

    def _weights(self, fed: Federation, latest: Mapping[str, str], order: Sequence[str]) -> Tensor:
        """w_ij of Eq. 4, (N, N), rows sum to 1."""
        config, count = self.config, len(order)
        if not self._weighs:
            return relevance_weights(torch.zeros(count, count), config.tau, config.include_self)
        sketches = [fed.store.get(latest[client], Keys(SKETCH, OWN_SKETCH)) for client in order]
        if all(SKETCH in item for item in sketches):
            return relevance_weights(
                self._cosines([item[SKETCH] for item in sketches], order), config.tau, config.include_self
            )
        # Gradients of the training models can be compared only within a backbone: nobody else has weight.
        weights = torch.zeros(count, count, dtype=torch.float64)
        for backbone in set(fed.backbone_of.values()):
            group = [i for i, client in enumerate(order) if fed.backbone_of[client] == backbone]
            if group:
                cosines = self._cosines([sketches[i][OWN_SKETCH] for i in group], [order[i] for i in group])
                weights[torch.tensor(group)[:, None], torch.tensor(group)] = relevance_weights(
                    cosines, config.tau, config.include_self
                )
        return weights

    def _cosines(self, vectors: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        if self.config.similarity == "flat":
            return cosine_matrix(vectors, names=names)
        return cosine_matrix(vectors, "official_columns", len(vectors[0]), names)

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        """G_i: PQ layers over all clients, conventional layers over those with the same backbone, renormalised."""
        table: Mapping[str, Mapping[str, float]] = state.meta.get("weights", {})
        if client_id not in table:
            return {}
        order = list(table[client_id])
        row = torch.tensor([table[client_id][other] for other in order], dtype=torch.float64)
        own = order.index(client_id)
        same = [i for i, other in enumerate(order) if fed.backbone_of[other] == fed.backbone_of[client_id]]
        everybody = self._sum(fed, state, order, row, shared("local", "all"))
        if len(same) == 1:  # nobody to combine with: the client keeps its own, and nothing is sent
            return renamed(everybody, "local", "global")
        group = self._sum(fed, state, order, renormalised(row, same, own), shared("local", "backbone"))
        return renamed({**everybody, **group}, "local", "global")

    def _sum(
        self, fed: Federation, state: ServerState, order: Sequence[str], weights: Tensor, keys: Keys
    ) -> dict[str, Tensor]:
        """`sum_j w_j L_j` over the keys; clients without weight are not read."""
        chosen = [(order[i], float(weight)) for i, weight in enumerate(weights) if weight > 0]
        return combine(
            (fed.store.get(state.tensors[client], keys) for client, _ in chosen), [weight for _, weight in chosen]
        )
