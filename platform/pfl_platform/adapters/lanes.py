"""Several clients on one backbone at the same time, each with live tensors of its own.

A `Lane` is a host of one of them: what it does alone is what the host would do with that client loaded. `Lanes.mixing`
takes rows of several clients through one pass; every row goes through its own client's adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import isfunction

import torch
from torch import Tensor, nn

from pfl_platform.adapters.host import FROZEN, Host
from pfl_platform.adapters.surfaces import Keys, Mix, Part, Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.features.shelf import Shelf


def seats(host: Host) -> dict[str, tuple[nn.Module, str]]:
    """Where each live tensor that clients have of their own stands: its module and its name there. What is missing
    is no parameter of a module."""
    own = {id(tensor): key for key, tensor in host.params.items() if not key.startswith(f"{FROZEN}/")}
    return {
        own[id(tensor)]: (module, name)
        for module in host.backbone.model.modules()
        for name, tensor in module.named_parameters(recurse=False)
        if id(tensor) in own
    }


def hindrance(host: Host) -> str:
    """Why clients cannot train side by side with a host's adapter; empty where they can."""
    shared = (FROZEN, *_mixes(host))
    own = [key for key in host.params if key.partition("/")[0] not in shared]
    if not own or not host.takes_rows(Keys(*own)):
        return "the adapter does not take params by row"
    if any(not key.startswith(f"{FROZEN}/") for key in set(host.params) - set(seats(host))):
        return "the adapter's params are no parameters of modules"
    return ""


def _mixes(host: Host) -> set[str]:
    return {name for layer in host.layers.values() for name in layer.mixes}


class Lane(Host):
    """A host with live tensors of its own: one client's, among several. What nobody trains, all share."""

    def __init__(self, host: Host, own: Mapping[str, Tensor], places: Mapping[str, tuple[nn.Module, str]]) -> None:
        # All that the host holds, but nothing that stands in for one of its methods, as a watched host has: it would
        # write into the host.
        methods = {name for name in vars(host) if isfunction(getattr(type(host), name, None))}
        vars(self).update({name: value for name, value in vars(host).items() if name not in methods})
        self._host = host
        self._places = [(*place, host.params[key], own[key]) for key, place in places.items()]
        self.params = {**host.params, **own}

    @cached_property
    def shelf(self) -> Shelf:
        return self._host.shelf

    def load_frozen(self, address: str | None, read: Callable[[str], Tensors]) -> None:
        self._host.load_frozen(address, read)

    def load_base(self, address: str | None, read: Callable[[str], Tensors]) -> None:
        self._host.load_base(address, read)

    @contextmanager
    def mixing(
        self,
        mix: Mix,
        mask: Tensor | Callable[[str], Tensor] | None = None,
        rng: Callable[[str], torch.Generator] | None = None,
    ) -> Iterator[None]:
        for module, name, _, tensor in self._places:
            module._parameters[name] = tensor  # type: ignore[assignment]
        try:
            with super().mixing(mix, mask, rng):
                yield
        finally:
            for module, name, tensor, _ in self._places:
                module._parameters[name] = tensor  # type: ignore[assignment]


class Lanes:
    """Room for `count` clients on a host. The values of all lie in one tensor for each key."""

    def __init__(self, host: Host, count: int) -> None:
        self.host = host
        places = seats(host)
        self._values = {key: host.params[key].detach().expand(count, *host.params[key].shape).clone() for key in places}
        self.lanes = [
            Lane(host, {key: nn.Parameter(values[number], False) for key, values in self._values.items()}, places)
            for number in range(count)
        ]

    @property
    def backbone(self) -> Backbone:
        return self.host.backbone

    @contextmanager
    def mixing(
        self, numbers: Sequence[int], mix: Mix, mask: Tensor | Callable[[str], Tensor], parts: Sequence[Part]
    ) -> Iterator[dict[str, Tensor]]:
        """Runs what is inside under a mix, `parts[k]` by the lane `numbers[k]`. Gives what is trained: key -> leaf
        (lanes, *shape), of which `hand_out` gives every lane its part of the gradient."""
        host = self.host
        rows = [part.rows.stop - part.rows.start for part in parts]
        first = self.lanes[numbers[0]].params
        leaves: dict[str, Tensor] = {}
        slots = {key.partition("/")[0] for key in self._values} if isinstance(mix, str) else set(mix)
        for key, values in self._values.items():
            slot, site, part = key.split("/")
            if slot not in slots or site not in host.layers or slot in host.layers[site].mixes:
                continue
            value = _taken(values, numbers)
            if first[key].requires_grad:
                leaves[key] = value = value.detach().requires_grad_(True)
            if len(set(rows)) > 1:
                value = torch.cat([one.expand(count, *one.shape) for one, count in zip(value, rows, strict=True)])
            host.layers[site].by_row[f"{slot}/{part}"] = value
        host.control.parts = parts
        try:
            with host.mixing(mix, mask):
                yield leaves
        finally:
            host.control.parts = ()
            for layer in host.layers.values():
                layer.by_row.clear()

    def hand_out(self, numbers: Sequence[int], leaves: Mapping[str, Tensor]) -> None:
        """Adds the gradients of leaves to those of the lanes' own tensors."""
        for key, leaf in leaves.items():
            if leaf.grad is None:
                continue
            for number, gradient in zip(numbers, leaf.grad, strict=True):
                tensor = self.lanes[number].params[key]
                tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient


def _taken(values: Tensor, numbers: Sequence[int]) -> Tensor:
    """The values of some lanes; a view where they lie beside each other."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return values[numbers[0] : numbers[0] + len(numbers)]
    return values[list(numbers)]
