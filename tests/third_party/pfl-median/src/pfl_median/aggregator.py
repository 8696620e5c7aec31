"""The server: sorts each coordinate over the clients, leaves out the ends, averages the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_median.plugin import Config
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates
from pfl_platform.federation.tasks import Address, Program


def trimmed_mean(stacked: Tensor, trim: float) -> Tensor:
    """Definition 2 of the paper: per coordinate, the mean without the `floor(trim n)` smallest and largest values.

    stacked: (n, ...), one row per client; the result has the shape of one row. At least one value (of an even
    number two) is kept, so that `trim` 0.5 is the median (Definition 1).

    >>> trimmed_mean(torch.tensor([1.0, 2.0, 90.0]), 0.5), trimmed_mean(torch.tensor([1.0, 2.0, 4.0, 90.0]), 0.5)
    (tensor(2.), tensor(3.))
    """
    n = stacked.shape[0]
    drop = min(int(trim * n), (n - 1) // 2)
    ordered = stacked.to(torch.float64).sort(dim=0).values
    return ordered[drop : n - drop].mean(dim=0).to(stacked.dtype)


def combine(updates: Sequence[Update], keys: Keys, trim: float) -> dict[str, Tensor]:
    """The trimmed mean of each tensor that `keys` covers."""
    sent = [update.tensors(keys) for update in updates]
    return {key: trimmed_mean(torch.stack([tensors[key] for tensors in sent]), trim) for key in sent[0]}


class Median(Aggregator):
    """State: per backbone, the address of the combined params. A backbone of which no client took part keeps its
    own."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def describe(self) -> Mapping[str, Any]:
        return self.config.model_dump()

    @property
    def needs(self) -> Needs:
        return Needs(consumes=("*",), replies=("*",))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        if len(updates) == 0:
            return state
        everybody = combine(list(updates), Keys("*/block*"), self.config.trim)
        addresses: dict[str, Address] = dict(state.tensors)
        for backbone in sorted({update.backbone for update in updates}):
            group = [update for update in updates if update.backbone == backbone]
            own = combine(group, Keys("*/layer*"), self.config.trim)
            addresses[backbone] = fed.store.put({**own, **everybody})
        return ServerState(addresses)

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        address = state.tensors.get(fed.backbone_of[client_id])
        return fed.store.get(address) if address else {}
