"""The federated side of every merging method: updates to a merged delta, to one reply per client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.components import (
    Aggregator,
    Base,
    ClientContext,
    Federation,
    Needs,
    Objective,
    ServerState,
    Update,
    Updates,
    combine,
)
from pfl_platform.federation.merging import Inputs, Merged, Target
from pfl_platform.federation.tasks import Address, Program, Share
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.lowrank.similarity import subspace_alignment
from pfl_platform.rng import seed_of, torch_rng
from pfl_platform.training.surfaces import Statistic
from pfl_plugins.merging.config import MergeConfig
from pfl_plugins.merging.measures import Measure
from pfl_plugins.merging.merger import SpaceMerger
from pfl_plugins.merging.rules import Rule
from pfl_plugins.merging.updates import FACTORS, deltas_of, is_factor, place_of, scale_of, sites_of, size_of, target_of


@dataclass
class _Group:
    """The clients of one backbone in one round: what is merged of them."""

    backbone: str
    updates: Sequence[Update]
    weights: tuple[float, ...]
    deltas: list[dict[str, Delta]]

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.deltas[0]))


@dataclass
class _Results:
    """Merged params by target or client, and the numbers of each module."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    alignment: dict[str, list[float]] = field(default_factory=dict)
    shares: tuple[tuple[float, ...], ...] = ()
    sent: int = 0

    def put(self, place: str, module: str, delta: Delta | Tensor) -> None:
        assert isinstance(delta, Delta)
        self.tensors.setdefault(place, {}).update(
            {f"{module}/A": delta.down.contiguous(), f"{module}/B": delta.up.contiguous()}
        )

    def add(self, place: str, module: str, delta: Delta | Tensor, read: Callable[[Keys], Tensors]) -> None:
        """Adds a whole delta to the dense float32 sum of those before, which `read` finds. Slots at one map add up."""
        key = f"base/{module.split('/', 1)[1]}/W"
        sums = self.tensors.setdefault(place, {})
        before = sums.get(key)
        if before is None:
            before = read(Keys(key)).get(key)
        dense = delta.dense(torch.float64) if isinstance(delta, Delta) else delta.double()
        sums[key] = (dense if before is None else before.double() + dense).float()
        self.sent += size_of(delta)


class MergingAggregator(Aggregator):
    """Merges the clients of each backbone, and hands out the result in each client's rank and scale.

    State, by address: "<backbone> r=<rank> s=<scale>", the merged params for every form of adapter; "client <id>",
    those of a personal rule; "base <backbone>", with `relora`, the dense sum of all merged deltas; "rest <backbone>",
    means of what is no factor. A backbone of which no client took part keeps what it had.
    """

    def __init__(self, name: str, rule: Rule, config: MergeConfig, measure: Measure | None = None) -> None:
        self.name, self.config, self.measure = name, config, measure
        self._merger = SpaceMerger(name, rule, config)
        if config.relora and rule.personal:
            raise UserError(
                f"'{name}' gives every client its own delta, and a backbone takes in one; set relora=false."
            )
        if config.relora and config.ab_reference != "zero":
            raise UserError("With relora every round starts from a fresh adapter; leave ab_reference at 'zero'.")

    @property
    def merger(self) -> SpaceMerger:
        return self._merger

    @property
    def needs(self) -> Needs:
        factors, returns = self.config.space == "ab", self.config.relora
        equal = ("adapter",) if factors else ()
        combines: Literal["keys", "deltas"] = "keys" if factors else "deltas"
        return Needs(("*",), ("*",), adapters=("lora",), equal=equal, returns=returns, combines=combines)

    @property
    def asks(self) -> tuple[Share, ...]:
        return () if self.measure is None else (Share(self.measure.keys, "backbone"),)

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        return () if self.measure is None else (self.measure.statistic(ctx, objective),)

    def check(self, fed: Federation) -> None:
        """The clients of a backbone adapt the same maps, with params that belong to that backbone."""
        if self.config.space == "weight" and not self.config.relora:
            ways = "choose" if self._merger.personal else "set aggregator.options.relora=true, or choose"
            raise UserError(
                f"The space 'weight' gives dense deltas, which only a backbone can take in; {ways} the space 'delta'."
            )
        if self.measure is not None and (reason := self.measure.refused(self.config.space)) is not None:
            raise UserError(f"'{self.name}' cannot run in a federation in the space '{self.config.space}': {reason}.")
        for backbone in fed.backbones:
            clients = [client.client_id for client in fed.clients if fed.backbone_of[client.client_id] == backbone]
            sites = {client: sites_of(fed, client) for client in clients}
            first, *rest = clients
            for other in rest:
                if differing := sorted(set(sites[first]) ^ set(sites[other])):
                    raise UserError(
                        f"'{self.name}' merges adapters of the same maps, but '{differing[0]}' of {backbone} is "
                        f"adapted by one only of the clients '{first}' and '{other}'; give them the same targets."
                    )

    def base(self, fed: Federation, state: ServerState, host: str) -> Base | None:
        backbone = next((fed.backbone_of[client] for client, own in fed.own_hosts.items() if own == host), host)
        address = state.tensors.get(f"base {backbone}")
        return None if address is None else Base(address, int(state.meta.get("sent", {}).get(backbone, 0)))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        yield from ()
        addresses: dict[str, Address] = dict(state.tensors)
        fresh: dict[str, Any] = dict(state.meta.get("fresh", {}))
        sent: dict[str, int] = dict(state.meta.get("sent", {}))
        report: dict[str, Any] = {"space": self._merger.space, "weights": {}, "backbones": {}}
        for backbone in sorted({update.backbone for update in updates}):
            mine = sorted(
                (update for update in updates if update.backbone == backbone), key=lambda item: item.client_id
            )
            good, left_out = self._finite(mine, round_index)
            if left_out:
                report.setdefault("left_out", []).extend(left_out)
            if not good:
                continue
            group = self._group(fed, backbone, good)
            results = self._merged(fed, state, group, round_index)
            for place, tensors in results.tensors.items():
                addresses[place] = fed.store.put(tensors)
            if rest := self._averaged(group):
                addresses[f"rest {backbone}"] = fed.store.put(rest)
            if self.config.relora:
                fresh[backbone] = {"round": round_index, "slots": sorted({m.split("/")[0] for m in group.modules})}
                sent[backbone] = sent.get(backbone, 0) + results.sent
            report["backbones"][backbone] = summary(results)
            report["weights"] |= self._weights(fed, group, results)
        meta = {"fresh": fresh, "sent": sent} if self.config.relora else {}
        return ServerState(addresses, meta, report)

    def _finite(self, updates: Sequence[Update], round_index: int) -> tuple[list[Update], list[str]]:
        """The updates without NaN or infinity, and the names of the others. Raises unless these may be left out."""
        good, bad = [], []
        for update in updates:
            broken = self._broken(update)
            if broken and not self.config.drop_bad:
                raise RunStopped(
                    f"The update of client '{update.client_id}' in round {round_index} holds NaN or infinity in "
                    f"'{broken[0]}': lower its learning rate, or go on without it by "
                    "aggregator.options.drop_bad=true."
                )
            if broken:
                bad.append(update.client_id)
            else:
                good.append(update)
        return good, bad

    def _broken(self, update: Update) -> list[str]:
        """Keys with NaN or infinity. Statistics, which may be many times the adapter, are read one by one."""
        names, measured = update.names(), Keys() if self.measure is None else self.measure.keys
        turns = [[key for key in names if key not in measured], *([key] for key in names if key in measured)]
        found = (item for turn in turns for item in update.tensors(Keys(*turn)).items())
        return [key for key, value in found if not bool(value.isfinite().all())]

    def _group(self, fed: Federation, backbone: str, updates: Sequence[Update]) -> _Group:
        sizes = [update.num_examples if self.config.weighting == "num_samples" else 1 for update in updates]
        sizes = sizes if sum(sizes) > 0 else [1] * len(sizes)
        deltas = [
            deltas_of(update.tensors(FACTORS), scale_of(fed, update.client_id), update.client_id) for update in updates
        ]
        for update, own in zip(updates[1:], deltas[1:], strict=True):
            if differing := sorted(set(own) ^ set(deltas[0])):
                raise UserError(
                    f"The updates of clients '{updates[0].client_id}' and '{update.client_id}' do not hold the same "
                    f"modules: '{differing[0]}' is in one only."
                )
        return _Group(backbone, updates, tuple(size / sum(sizes) for size in sizes), deltas)

    def _inputs(self, fed: Federation, state: ServerState, group: _Group, round_index: int) -> Inputs:
        updates, measure = group.updates, self.measure
        place = place_of(group.backbone, target_of(fed, updates[0].client_id))
        before = self.config.ab_reference == "previous_global" and state.tensors.get(place)
        start = deltas_of(fed.store.get(before, FACTORS), scale_of(fed, updates[0].client_id), "") if before else None
        return Inputs(
            names=tuple(update.client_id for update in updates),
            modules=group.modules,
            weights=group.weights,
            read=lambda k, module: group.deltas[k][module],
            rng=lambda *parts: torch_rng(fed.seed, "merge", round_index, *parts),
            statistic=None if measure is None else lambda name, k, module: measure.read(updates[k], name, module),
            reference=None if start is None else start.__getitem__,
            shared=None if measure is None else lambda name, m: tuple(measure.address(u, name, m) for u in updates),
        )

    def _merged(self, fed: Federation, state: ServerState, group: _Group, round_index: int) -> _Results:
        inputs = self._inputs(fed, state, group, round_index)
        results = _Results()
        everybody = [c.client_id for c in fed.clients if fed.backbone_of[c.client_id] == group.backbone]
        targets: list[Target | None]
        if self._merger.personal:
            places = [f"client {name}" for name in inputs.names]
            targets = [target_of(fed, name) for name in inputs.names]
        elif self.config.relora:
            places, targets = [f"base {group.backbone}"], [None]
        else:
            wanted = sorted({target_of(fed, name) for name in everybody}, key=lambda item: (item.rank, item.scale))
            places, targets = [place_of(group.backbone, target) for target in wanted], list(wanted)
        known = state.tensors.get(places[0]) if self.config.relora else None
        for merged in self._merger.merge(inputs, targets):
            results.rows[merged.module] = dict(merged.report)
            results.shares = merged.shares
            self._align(inputs, merged, results)
            for place, delta in zip(places, merged.deltas, strict=True):
                if self.config.relora:
                    results.add(place, merged.module, delta, lambda key: fed.store.get(known, key) if known else {})
                else:
                    results.put(place, merged.module, delta)
        return results

    def _weights(self, fed: Federation, group: _Group, results: _Results) -> dict[str, dict[str, float]]:
        """Client -> contributor -> weight: what the rule was given, or, where results are personal, how much of each
        came from whom."""
        names = [update.client_id for update in group.updates]
        if self._merger.personal:
            return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, results.shares, strict=False)}
        row = dict(zip(names, group.weights, strict=True))
        return {client: row for client, backbone in fed.backbone_of.items() if backbone == group.backbone}

    def _align(self, inputs: Inputs, merged: Merged, results: _Results) -> None:
        """SAR of every client with the merged delta, or with its own where results are personal."""
        if not all(isinstance(delta, Delta) for delta in merged.deltas):
            return
        wholes = [svd(delta) for delta in merged.deltas if isinstance(delta, Delta)]
        chosen = wholes if self._merger.personal else [max(wholes, key=lambda item: item.rank)] * len(inputs)
        for name, delta, whole in zip(inputs.names, inputs.deltas(merged.module), chosen, strict=True):
            results.alignment.setdefault(name, []).append(subspace_alignment(delta, whole))

    def _averaged(self, group: _Group) -> dict[str, Tensor]:
        """What clients send beside factors and statistics (biases, say): the weighted mean, whatever the rule."""
        measured = self.measure.keys if self.measure is not None else Keys()

        def rest() -> Iterator[Mapping[str, Tensor]]:
            for update in group.updates:
                keys = [key for key in update.names() if not is_factor(key) and key not in measured]
                yield update.tensors(Keys(*keys))

        return combine(rest(), group.weights)

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        backbone = fed.backbone_of[client_id]
        place = f"client {client_id}" if self._merger.personal else place_of(backbone, target_of(fed, client_id))
        found: dict[str, Tensor] = self._fresh(fed, state, client_id) if self.config.relora else {}
        for address in (state.tensors.get(place), state.tensors.get(f"rest {backbone}")):
            found.update(fed.store.get(address) if address else {})
        return found

    def _fresh(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        """A new adapter, B = 0, the same A for all clients of a backbone, in the slots that were merged."""
        last = state.meta.get("fresh", {}).get(fed.backbone_of[client_id])
        if last is None:
            return {}
        adapter, host = fed.adapter_of(client_id), fed.load(fed.host_of(client_id))
        seed = seed_of(fed.seed, "fresh", last["round"])
        return {key: value for slot in last["slots"] for key, value in adapter.initial(host, slot, seed).items()}


def summary(results: _Results) -> dict[str, Any]:
    """Per module what the merger reports; means over modules; SAR between each client and what it is sent."""
    names = sorted({key for row in results.rows.values() for key in row})
    means = {key: _mean([row[key] for row in results.rows.values() if key in row]) for key in names}
    sar = {client: _mean(values) for client, values in results.alignment.items()}
    return {"mean": means, "sar": sar, "modules": results.rows}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
