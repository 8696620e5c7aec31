"""One backbone with slots: the place into which clients' adapters are swapped.

A process holds one `Host` per backbone and serves all its clients with it. Loading a client is a copy into the slots'
tensors; nothing is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import AdapterType, Control, Keys, Mix, MixFactory, Slot, SlotLayer, Tensors
from pfl_platform.backbones import Backbone

FROZEN = "frozen"
"""Slot name of params that all slots of a backbone share."""
BACKBONE = "backbone"
"""Slot name under which a backbone's own params are exposed, for pretraining only."""


class Host:
    """A backbone, its slot layers and the live tensors by key.

    Without an adapter it serves the bare backbone; with `whole=True` the backbone's own params are keys
    `backbone/<module path>/<name>` and can be trained, which is how tiny backbones are pretrained.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: AdapterType | None = None,
        slots: Sequence[Slot] = (),
        mixes: Mapping[str, MixFactory] | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.backbone = backbone
        self.control = Control()
        self.layers: Mapping[str, SlotLayer] = {}
        self.params: dict[str, Tensor] = {}
        self.frozen_address: str | None = None
        if adapter is not None:
            adapter.check(backbone)
            with torch.random.fork_rng(devices=[]):  # what libraries draw here is overwritten by `load`
                self.layers = adapter.install(backbone, slots, self.control)
                self._collect([slot.name for slot in slots], mixes or {})
        if whole:
            for name, parameter in backbone.model.named_parameters():
                path, _, part = name.rpartition(".")
                self.params[f"{BACKBONE}/{path}/{part}"] = parameter
        for tensor in self.params.values():
            tensor.requires_grad_(False)

    def _collect(self, slots: Sequence[str], mixes: Mapping[str, MixFactory]) -> None:
        for name, layer in self.layers.items():
            for slot in (*slots, FROZEN):
                for part, tensor in layer.slot_params(slot).items():
                    self.params[f"{slot}/{name}/{part}"] = tensor
            for mix, factory in mixes.items():
                module = factory(layer.site).to(self.backbone.device)
                layer.mixes[mix] = module
                for part, parameter in module.named_parameters():
                    self.params[f"{mix}/{name}/{part}"] = parameter

    @cached_property
    def linear_values(self) -> int:
        """Numbers in the linear maps of the blocks and of the head: what a token is multiplied with. Embeddings are
        only looked up, and a vision tower runs once per picture; neither counts here."""
        backbone = self.backbone
        modules = [backbone.module(f"{block}.{linear}") for block in backbone.blocks for linear in backbone.linears]
        modules = [module.base if isinstance(module, SlotLayer) else module for module in modules]
        modules.append(backbone.module(backbone.head))
        return sum(int(cast(Tensor, module.weight).numel()) for module in modules)

    def load(self, tensors: Tensors) -> None:
        """Copies every tensor whose key is live; keys that are not (moments, counts) are left alone."""
        with torch.no_grad():
            for key, value in tensors.items():
                live = self.params.get(key)
                if live is not None:
                    live.copy_(value)

    def load_frozen(self, address: str | None, read: Callable[[str], Tensors]) -> None:
        """Loads shared frozen params unless they are there already."""
        if address is not None and address != self.frozen_address:
            self.load(read(address))
            self.frozen_address = address

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Copies on the CPU of live tensors."""
        return {key: self.params[key].detach().to("cpu", copy=True) for key in keys}

    def select(self, keys: Keys) -> dict[str, Tensor]:
        """Makes exactly these live tensors trainable and returns them, sorted by key."""
        chosen = {key: self.params[key] for key in sorted(self.params) if key in keys}
        for key, tensor in self.params.items():
            tensor.requires_grad_(key in chosen)
        return chosen

    @contextmanager
    def mixing(
        self, mix: Mix, mask: Tensor | None = None, rng: Callable[[str], torch.Generator] | None = None
    ) -> Iterator[None]:
        """Runs what is inside under a mix. `mask` is the pass's attention mask; `rng` gives dropout and noise their
        generators, None switches both off."""
        control = self.control
        before = (control.mix, control.mask, control.rng)
        control.mix, control.mask, control.rng = mix, mask, rng
        try:
            yield
        finally:
            control.mix, control.mask, control.rng = before
