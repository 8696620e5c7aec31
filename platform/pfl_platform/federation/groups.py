"""Averages over those whose params mean the same: everybody at shared sites, the clients of a backbone elsewhere.

This is what lets every method that averages weights run on mixed backbones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.federation.components import Federation, ServerState, Update, Updates, combine
from pfl_platform.federation.tasks import Address

EVERYBODY, GROUP = Keys("*/block*"), Keys("*/layer*")


def sizes(updates: Iterable[Update], *, examples: bool) -> list[float]:
    """A weight for each update: its number of training examples, or 1."""
    return [float(update.num_examples) if examples else 1.0 for update in updates]


def mean(updates: Sequence[Update], weights: Sequence[float], keys: Keys) -> dict[str, Tensor]:
    """`sum_i w_i theta_i / sum_i w_i` over the given keys, each tensor on its own; {} of no updates. The keys that the
    first has are taken; weights are not negative and not all zero."""
    total = sum(weights)
    return combine((update.tensors(keys) for update in updates), [weight / total for weight in weights])


def mean_for(backbone: str, updates: Sequence[Update], weights: Sequence[float]) -> dict[str, Tensor]:
    """What these updates give a client of one backbone: the mean of shared params over all of them, and of the others
    over those with that backbone; a part for which there is nobody is not in it."""
    same = [(update, weight) for update, weight in zip(updates, weights, strict=True) if update.backbone == backbone]
    own = mean([update for update, _ in same], [weight for _, weight in same], GROUP)
    return {**own, **mean(updates, weights, EVERYBODY)}


def of_backbone(fed: Federation, state: ServerState, client_id: str, prefix: str = "") -> dict[str, Tensor]:
    """The reply of a server whose state has one message per backbone, under `prefix` and the backbone's name; {} for
    one that has none yet."""
    address = state.tensors.get(f"{prefix}{fed.backbone_of[client_id]}")
    return fed.store.get(address) if address else {}


def weighed(fed: Federation, updates: Updates, *, examples: bool) -> dict[str, dict[str, float]]:
    """How much each client weighs in what `average` gives a client, within its backbone: client -> contributor ->
    weight. Shared params are averaged over everybody by the same sizes. Clients of a backbone of which nobody took part
    get nothing new, and are not in it."""
    table = {}
    for client in fed.clients:
        group = [update for update in updates if update.backbone == fed.backbone_of[client.client_id]]
        shares = sizes(group, examples=examples)
        if group:
            table[client.client_id] = {
                update.client_id: share / sum(shares) for update, share in zip(group, shares, strict=True)
            }
    return table


def average(fed: Federation, former: dict[str, Address], updates: Updates, *, examples: bool) -> dict[str, Address]:
    """Backbone -> address of its clients' mean. A backbone of which no client took part keeps what it had, and gets the
    params that mean the same everywhere, also when it has had nothing yet."""
    addresses = dict(former)
    if len(updates) == 0:
        return addresses
    everyone = list(updates)
    common = mean(everyone, sizes(everyone, examples=examples), EVERYBODY)
    present = {update.backbone for update in everyone}
    for backbone in sorted(present):
        group = [update for update in everyone if update.backbone == backbone]
        own: Tensors = mean(group, sizes(group, examples=examples), GROUP)
        addresses[backbone] = fed.store.put({**own, **common})
    return handed_on(fed, addresses, common, present)


def handed_on(
    fed: Federation, addresses: Mapping[str, Address], common: Tensors, present: Collection[str]
) -> dict[str, Address]:
    """The messages by backbone, with the params that mean the same everywhere also in those of backbones of which no
    client took part, whether they have had one before or not."""
    found = dict(addresses)
    if common:
        for backbone in sorted(set(fed.backbones) - set(present)):
            had = fed.store.get(found[backbone]) if backbone in found else {}
            found[backbone] = fed.store.put({**had, **common})
    return found
