"""LoRA as an adapter type; also the conventional layers of adapters that treat some layers otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from pfl_platform.adapters.surfaces import AdapterType, Control, Keys, Site, Slot, SlotLayer
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_plugins.lora.config import Config, chosen
from pfl_plugins.lora.layer import LoraSlots


def linear_sites(backbone: Backbone, linears: Sequence[str], blocks: Sequence[int]) -> tuple[Site, ...]:
    """Conventional sites of some decoder blocks, named `layer<index>.<linear map>`."""
    sites = []
    for index in blocks:
        there = backbone.linears_in(backbone.blocks[index])
        for linear in (name for name in linears if name in there):
            path = f"{backbone.blocks[index]}.{linear}"
            module = backbone.module(path)
            base = getattr(module, "base", module)  # a slot layer may be there already
            shape = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
            sites.append(Site(f"layer{index}.{linear}", path, *shape, scope="backbone", block=index))
    return tuple(sites)


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def inject(model: nn.Module, config: PeftConfig, slot: str) -> None:
    """Puts one adapter into a model through peft. peft leaves its configuration on the model and then warns of it
    at the next adapter, which here is meant; so it is taken away again."""
    inject_adapter_in_model(config, model, adapter_name=slot)
    if hasattr(model, "peft_config"):
        del model.peft_config


def install_lora(
    backbone: Backbone, sites: Sequence[Site], slots: Sequence[Slot], control: Control, config: Config
) -> dict[str, SlotLayer]:
    """Injects one peft LoRA adapter per slot at the sites and wraps each site in a `LoraSlots`."""
    if not sites:
        return {}
    for slot in slots:
        peft_config = LoraConfig(
            r=config.r, lora_alpha=round(config.scale * config.r), target_modules=[site.path for site in sites]
        )
        inject(backbone.model, peft_config, slot.name)
    layers: dict[str, SlotLayer] = {}
    for site in sites:
        tuner = backbone.module(site.path)
        for factors in (tuner.lora_A, tuner.lora_B):
            cast(nn.Module, factors).float()  # peft takes the backbone's precision; adapters train in float32
        layer = LoraSlots(site, backbone.module(site.path), control, config.scale, config.dropout)
        replace_module(backbone.model, site.path, layer)
        layers[site.name] = layer
    return layers


def initial_lora(sites: Sequence[Site], slot: str, seed: int, rank: int) -> dict[str, Tensor]:
    """A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), which is Kaiming-uniform with a = sqrt(5); B = 0. Addressed by site."""
    params = {}
    for site in sites:
        bound = 1.0 / math.sqrt(site.in_features)
        generator = torch_rng(seed, "lora", site.name)
        params[f"{slot}/{site.name}/A"] = torch.rand(rank, site.in_features, generator=generator) * 2 * bound - bound
        params[f"{slot}/{site.name}/B"] = torch.zeros(site.out_features, rank)
    return params


def sizes_of(sites: Sequence[Site], rank: int) -> dict[str, int]:
    """Values of A and B at every site."""
    return {
        f"{site.name}/{part}": rank * width
        for site in sites
        for part, width in (("A", site.in_features), ("B", site.out_features))
    }


class Lora(AdapterType):
    """LoRA with one rank everywhere."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def name(self) -> str:
        return "lora"

    def sites(self, backbone: Backbone) -> tuple[Site, ...]:
        return linear_sites(backbone, chosen(backbone.linears, self.config.targets), range(len(backbone.blocks)))

    def check(self, backbone: Backbone) -> None:
        check_rank(self.sites(backbone), self.config.r, backbone.name)

    def install(self, backbone: Backbone, slots: Sequence[Slot], control: Control) -> Mapping[str, SlotLayer]:
        return install_lora(backbone, self.sites(backbone), slots, control, self.config)

    def initial(self, backbone: Backbone, slot: str, seed: int) -> dict[str, Tensor]:
        return initial_lora(self.sites(backbone), slot, seed, self.config.r)

    def trainable(self, slot: str) -> Keys:
        return Keys(f"{slot}/*/A", f"{slot}/*/B")

    def sizes(self, backbone: Backbone) -> Mapping[str, int]:
        return sizes_of(self.sites(backbone), self.config.r)

    def signature(self) -> Mapping[str, Any]:
        config = self.config
        return {"adapter": self.name, "r": config.r, "scale": config.scale, "targets": list(config.targets)}


def check_rank(sites: Sequence[Site], rank: int, backbone: str) -> None:
    """Raises `UserError` when a site is smaller than the rank."""
    for site in sites:
        smallest = min(site.in_features, site.out_features)
        if rank > smallest:
            raise UserError(f"Rank {rank} is larger than {site.path} of {backbone}, which has size {smallest}.")
