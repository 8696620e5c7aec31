"""The server: one global adapter per backbone, whose clients have bargained for its direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates, combine
from pfl_platform.federation.groups import EVERYBODY, GROUP, handed_on, of_backbone
from pfl_platform.federation.tasks import Address, Program
from pfl_plugins.nbs.config import Config
from pfl_plugins.nbs.equations import gram, shares


class NashBargaining(Aggregator):
    """`G <- G + sum_i alpha_i (theta_i - G)`, alpha the Nash bargaining solution of the deltas, scaled to sum 1: among
    the clients of a backbone, and among all for params that mean the same everywhere.

    State: per backbone, the address of G under the keys that were sent. A backbone of which no client took part keeps
    what it had, but for the params that mean the same everywhere.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=("*",), replies=(self.config.reply_slot or "*",))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        if len(updates) == 0:
            return state
        report: dict[str, Any] = {"weights": {}, "residual": {}}
        everybody = self._bargained(fed, state, list(updates), EVERYBODY, "all backbones", report)
        addresses: dict[str, Address] = dict(state.tensors)
        for backbone in sorted({update.backbone for update in updates}):
            group = [update for update in updates if update.backbone == backbone]
            own = self._bargained(fed, state, group, GROUP, backbone, report)
            addresses[backbone] = fed.store.put({**own, **everybody})
        present = {update.backbone for update in updates}
        return ServerState(handed_on(fed, addresses, everybody, present), {}, report)

    def _bargained(
        self,
        fed: Federation,
        state: ServerState,
        updates: Sequence[Update],
        keys: Keys,
        name: str,
        report: dict[str, Any],
    ) -> dict[str, Tensor]:
        """The new params under `keys`; what each client weighs is added to the report."""
        if not updates[0].tensors(keys):
            return {}
        weights, rest = shares(gram(self._deltas(fed, state, updates, keys)), self.config.ridge)
        row = {update.client_id: weight for update, weight in zip(updates, weights.tolist(), strict=True)}
        report["weights"] |= {update.client_id: row for update in updates}
        report["residual"][name] = rest
        return combine((update.tensors(keys) for update in updates), weights.tolist())

    def _deltas(
        self, fed: Federation, state: ServerState, updates: Sequence[Update], keys: Keys
    ) -> Iterator[dict[str, Tensor]]:
        """What each client has changed of the global params; before the first round, of those that all start from."""
        for update in updates:
            sent = update.tensors(keys)
            before = self._before(fed, state, update, sent, keys)
            yield {key: value - before[key] if key in before else value for key, value in sent.items()}

    def _before(
        self, fed: Federation, state: ServerState, update: Update, sent: Tensors, keys: Keys
    ) -> Mapping[str, Tensor]:
        known = fed.store.get(state.tensors[update.backbone], keys) if update.backbone in state.tensors else {}
        if sent.keys() <= known.keys():
            return known
        adapter, host = fed.adapter_of(update.client_id), fed.load(fed.host_of(update.client_id))
        slots = sorted({key.partition("/")[0] for key in sent})
        start = {key: value for slot in slots for key, value in adapter.initial(host, slot, fed.seed).items()}
        return {**start, **known}

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        found = of_backbone(fed, state, client_id)
        if not self.config.reply_slot:
            return found
        return {f"{self.config.reply_slot}/{key.partition('/')[2]}": value for key, value in found.items()}
