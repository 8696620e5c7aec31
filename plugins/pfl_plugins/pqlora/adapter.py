"""PQ-LoRA as an adapter type. Its PQ sites have scope "all": P and Q mean the same in every backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.host import FROZEN
from pfl_platform.adapters.surfaces import AdapterType, Control, Keys, Site, Slot, SlotLayer
from pfl_platform.backbones import Backbone
from pfl_platform.rng import torch_rng
from pfl_plugins.lora.adapter import (
    check_rank,
    initial_lora,
    inject,
    install_lora,
    linear_sites,
    replace_module,
    sizes_of,
)
from pfl_plugins.lora.config import chosen
from pfl_plugins.pqlora.config import Config
from pfl_plugins.pqlora.placement import pq_layers
from pfl_plugins.pqlora.slots import PQSlots
from pfl_plugins.pqlora.tuner import PQLoraConfig
from pfl_plugins.pqlora.tuner.layer import orthonormal


class PQLora(AdapterType):
    """PQ-LoRA at `pq_layers`, LoRA elsewhere; A and B of the PQ sites are the shared frozen params."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def name(self) -> str:
        return "pqlora"

    def _blocks(self, backbone: Backbone) -> tuple[int, ...]:
        return pq_layers(len(backbone.blocks), self.config.blocks, self.config.placement)

    def pq_sites(self, backbone: Backbone) -> tuple[Site, ...]:
        """Sites `block<k>.<linear map>`, k from 0: the k-th PQ layer of any backbone."""
        linears = chosen(backbone.linears, self.config.targets)
        sites = []
        for k, layer in enumerate(self._blocks(backbone)):
            for site in linear_sites(backbone, linears, [layer]):
                name = site.name.replace(f"layer{layer}.", f"block{k}.", 1)
                sites.append(Site(name, site.path, site.in_features, site.out_features, "all", layer))
        return tuple(sites)

    def lora_sites(self, backbone: Backbone) -> tuple[Site, ...]:
        taken = self._blocks(backbone)
        rest = [index for index in range(len(backbone.blocks)) if index not in taken]
        return linear_sites(backbone, chosen(backbone.linears, self.config.targets), rest)

    def sites(self, backbone: Backbone) -> tuple[Site, ...]:
        return tuple(sorted(self.pq_sites(backbone) + self.lora_sites(backbone), key=lambda site: site.block))

    def check(self, backbone: Backbone) -> None:
        check_rank(self.sites(backbone), self.config.r, backbone.name)

    def install(self, backbone: Backbone, slots: Sequence[Slot], control: Control) -> Mapping[str, SlotLayer]:
        config = self.config
        sites = self.pq_sites(backbone)
        layers = install_lora(backbone, self.lora_sites(backbone), slots, control, config)
        names = [slot.name for slot in slots]
        for slot in names:
            peft_config = PQLoraConfig(
                r=config.r, lora_alpha=config.scale * config.r, target_modules=[site.path for site in sites]
            )
            inject(backbone.model, peft_config, slot)
        for site in sites:
            tuner = backbone.module(site.path)
            layer = PQSlots(site, tuner, names, control, config.scale, config.dropout)
            replace_module(backbone.model, site.path, layer)
            layers[site.name] = layer
        return layers

    def initial(self, backbone: Backbone, slot: str, seed: int) -> dict[str, Tensor]:
        """LoRA layers as LoRA; P = 0 and Q = 0 (the paper does not say; its code), so the output starts at zero,
        while both receive gradient at once because A and B are not zero."""
        rank = self.config.r
        params = initial_lora(self.lora_sites(backbone), slot, seed, rank)
        for site in self.pq_sites(backbone):
            params[f"{slot}/{site.name}/P"] = torch.zeros(rank, rank)
            params[f"{slot}/{site.name}/Q"] = torch.zeros(rank)
        return params

    def frozen(self, backbone: Backbone, seed: int) -> dict[str, Tensor]:
        """Orthonormal A (rows) and B (columns) of every PQ site (Eq. 18), addressed by backbone and site."""
        rank = self.config.r
        params = {}
        for site in self.pq_sites(backbone):
            for part, rows, columns in (("A", rank, site.in_features), ("B", site.out_features, rank)):
                generator = torch_rng(seed, "pqlora", backbone.name, site.name, part)
                params[f"{FROZEN}/{site.name}/{part}"] = orthonormal(rows, columns, generator)
        return params

    def trainable(self, slot: str) -> Keys:
        return Keys(*(f"{slot}/*/{part}" for part in ("A", "B", "P", "Q")))

    def sizes(self, backbone: Backbone) -> Mapping[str, int]:
        rank = self.config.r
        square = {
            f"{site.name}/{part}": size
            for site in self.pq_sites(backbone)
            for part, size in (("P", rank * rank), ("Q", rank))
        }
        return {**sizes_of(self.lora_sites(backbone), rank), **square}

    def signature(self) -> Mapping[str, Any]:
        config = self.config
        return {
            "adapter": self.name,
            "r": config.r,
            "scale": config.scale,
            "blocks": config.blocks,
            "placement": config.placement,
            "targets": list(config.targets),
        }
