"""Clients whose adapter has options of its own, such as another rank.

Slots of another shape do not fit into the modules that the other clients of a backbone share. Such clients are served
by a *twin* of the backbone: modules of its own around the same frozen tensors, so that it costs its adapters only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import AdapterType, Control, Keys, Site, Slot, SlotLayer
from pfl_platform.backbones import Backbone
from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError


def twin(backbone: Backbone, name: str) -> Backbone:
    """The same backbone under another name: new modules, the same frozen tensors; a task head, which may be trained,
    is copied. Call it before adapters are put in."""
    model = backbone.model
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for path in backbone.task_head:
        for tensor in backbone.module(path).parameters():
            del tensors[id(tensor)]
    return replace(backbone, card=replace(backbone.card, name=name), model=copy.deepcopy(model, tensors))


def adapters_of_clients(
    config: RunConfig, backbone_of: Mapping[str, str], make: Callable[[Mapping[str, Any]], AdapterType]
) -> tuple[dict[str, str], dict[str, AdapterType]]:
    """Hosts and adapters of the clients that differ, by client id. Equal options on one backbone share a host.

    make: builds the run's adapter with given options.
    """
    hosts: dict[str, str] = {}
    made: dict[str, AdapterType] = {}
    for client_id, own in config.clients.items():
        options = {**config.adapter.options, **own.adapter}
        if options == config.adapter.options:
            continue
        told = ", ".join(f"{key}={value}" for key, value in sorted(own.adapter.items()))
        host = hosts[client_id] = f"{backbone_of[client_id]} [{told}]"
        if host not in made:
            try:
                made[host] = make(options)
            except UserError as error:
                raise UserError(f"Client '{client_id}': {error}") from error
    return hosts, {client_id: made[host] for client_id, host in hosts.items()}


class ByHost(AdapterType):
    """The run's adapter where some hosts have one with other options: each call goes to the one of the host."""

    def __init__(self, common: AdapterType, of_host: Mapping[str, AdapterType]) -> None:
        self._common = common
        self._of_host = dict(of_host)

    def _at(self, backbone: Backbone) -> AdapterType:
        return self._of_host.get(backbone.name, self._common)

    @property
    def name(self) -> str:
        return self._common.name

    def sites(self, backbone: Backbone) -> tuple[Site, ...]:
        return self._at(backbone).sites(backbone)

    def install(self, backbone: Backbone, slots: Sequence[Slot], control: Control) -> Mapping[str, SlotLayer]:
        return self._at(backbone).install(backbone, slots, control)

    def initial(self, backbone: Backbone, slot: str, seed: int) -> dict[str, Tensor]:
        return self._at(backbone).initial(backbone, slot, seed)

    def frozen(self, backbone: Backbone, seed: int) -> dict[str, Tensor]:
        return self._at(backbone).frozen(backbone, seed)

    def trainable(self, slot: str) -> Keys:
        return self._common.trainable(slot)

    def signature(self) -> Mapping[str, Any]:
        """That of the clients without options of their own."""
        return self._common.signature()

    def check(self, backbone: Backbone) -> None:
        self._at(backbone).check(backbone)
