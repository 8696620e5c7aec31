"""Whole modules as an adapter type, with LoRA beside them where it is wanted."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pfl_platform.adapters.surfaces import AdapterType, Control, Keys, Site, Slot, SlotLayer
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError, nearest
from pfl_plugins.lora.adapter import check_rank, initial_lora, install_lora, linear_sites, sizes_of
from pfl_plugins.lora.config import chosen
from pfl_plugins.modules.config import Config
from pfl_plugins.modules.layer import WholeSlots, own_params


@dataclass(frozen=True)
class _Held:
    """A module with params of its own. parent: what it is an attribute of, under `name`."""

    site: Site
    module: nn.Module
    parent: nn.Module
    name: str


class Modules(AdapterType):
    """Params of whole modules, and LoRA in linear maps that are not among them."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def name(self) -> str:
        return "modules"

    def sites(self, backbone: Backbone) -> tuple[Site, ...]:
        held = self._held(backbone)
        return (*(item.site for item in held), *self._low_rank(backbone, {item.site.path for item in held}))

    def check(self, backbone: Backbone) -> None:
        """Every pattern matches something, and something trains."""
        if not self.config.modules and self.config.lora is None:
            raise UserError("The adapter 'modules' names no module; set adapter.modules to paths in the backbone.")
        paths = [path for path, *_ in _walk(backbone.model)]
        for pattern in self.config.modules:
            if not any(_within(path, pattern) for path in paths):
                tops = sorted({".".join(path.split(".")[:depth]) for path in paths for depth in (1, 2)})
                raise UserError(
                    f"No module of {backbone.name} is '{pattern}'; it has {', '.join(tops)}." + nearest(pattern, tops)
                )
        packed = [key for key, value in self._params(backbone).items() if not value.is_floating_point()]
        if packed:
            raise UserError(
                f"{packed[0]} of {backbone.name} is held in few bits and cannot be trained; load all of it."
            )
        if self.config.lora is not None:
            low_rank = self._beside(backbone)
            if not low_rank:
                raise UserError(
                    f"No linear map of {backbone.name} is left for LoRA beside whole modules; leave it out."
                )
            check_rank(low_rank, self.config.lora.r, backbone.name)

    def install(self, backbone: Backbone, slots: Sequence[Slot], control: Control) -> Mapping[str, SlotLayer]:
        held = self._held(backbone)
        low_rank = self._low_rank(backbone, {item.site.path for item in held})
        layers: dict[str, SlotLayer] = {}
        owners: dict[int, tuple[WholeSlots, str]] = {}
        for item in held:
            own = dict(item.module.named_parameters(recurse=False))
            shared = {name: owners[id(value)] for name, value in own.items() if id(value) in owners}
            layer = WholeSlots(item.site, item.module, control, [slot.name for slot in slots], shared)
            owners |= {id(value): (layer, name) for name, value in own.items() if name not in shared}
            layers[item.site.name] = layer
            setattr(item.parent, item.name, layer)
        if self.config.lora is None:
            return layers
        return {**layers, **install_lora(backbone, low_rank, slots, control, self.config.lora)}

    def initial(self, backbone: Backbone, slot: str, seed: int) -> dict[str, Tensor]:
        """The weights as they were loaded, A and B of LoRA as it starts them."""
        found = {
            f"{slot}/{key}": value.detach().to("cpu", copy=True).float()
            for key, value in self._params(backbone).items()
        }
        if self.config.lora is None:
            return found
        return {**found, **initial_lora(self._beside(backbone), slot, seed, self.config.lora.r)}

    def trainable(self, slot: str) -> Keys:
        return Keys(f"{slot}/*")

    def sizes(self, backbone: Backbone) -> Mapping[str, int]:
        found = {key: value.numel() for key, value in self._params(backbone).items()}
        return found if self.config.lora is None else {**found, **sizes_of(self._beside(backbone), self.config.lora.r)}

    def signature(self) -> Mapping[str, Any]:
        lora = self.config.lora
        return {"adapter": self.name, "modules": list(self.config.modules), "lora": lora and lora.model_dump()}

    def _held(self, backbone: Backbone) -> list[_Held]:
        """The modules that are named, and those that have their params in common with one of them, in the model's
        order."""
        there = list(_walk(backbone.model))
        named = [path for path, *_ in there if any(_within(path, pattern) for pattern in self.config.modules)]
        params = {
            id(value) for path, module, *_ in there if path in named for value in module.parameters(recurse=False)
        }
        return [
            _Held(_site(path, module), module, parent, name)
            for path, module, parent, name in there
            if any(id(value) in params for value in module.parameters(recurse=False))
        ]

    def _params(self, backbone: Backbone) -> dict[str, Tensor]:
        """`site/name` -> the params that train, as they are in the backbone; what several modules have in common once,
        at the first of them."""
        found: dict[int, tuple[str, Tensor]] = {}
        for item in self._held(backbone):
            for name, value in item.module.named_parameters(recurse=False):
                found.setdefault(id(value), (f"{item.site.name}/{name}", value))
        return dict(found.values())

    def _beside(self, backbone: Backbone) -> tuple[Site, ...]:
        return self._low_rank(backbone, {item.site.path for item in self._held(backbone)})

    def _low_rank(self, backbone: Backbone, whole: set[str]) -> tuple[Site, ...]:
        if self.config.lora is None:
            return ()
        linears = chosen(backbone.linears, self.config.lora.targets)
        sites = linear_sites(backbone, linears, range(len(backbone.blocks)))
        return tuple(site for site in sites if site.path not in whole)


def _walk(root: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, nn.Module, str]]:
    """(path, module, parent, name in the parent) of all modules with params of their own; slot layers that are there
    already are looked through, and what else is in them left out."""
    for name, child in root.named_children():
        where = f"{path}.{name}" if path else name
        module = child.base if isinstance(child, SlotLayer) else child
        if own_params(module):
            yield where, module, root, name
        yield from _walk(module, where)


def _within(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


def _site(path: str, module: nn.Module) -> Site:
    """Named so that its params are combined within a backbone alone; a module that is no linear map has the shape of
    its first param."""
    shape = next(module.parameters(recurse=False)).shape
    sizes = (int(shape[1]), int(shape[0])) if len(shape) == 2 else (1, int(shape.numel()))
    return Site(f"layer.{path}", path, *sizes)
