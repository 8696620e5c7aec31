"""A client's personal model as one adapter that plain peft loads.

A weighted sum of low-rank affine maps is again one: U = [w_1 U_1, w_2 U_2, ...], V stacked below each other, c =
sum w_s c_s. Each site is saved with its own rank, so nothing is truncated. A mix whose weights depend on the input
has no such form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Factors, Mix, SlotLayer


def static_weights(layer: SlotLayer, mix: Mix) -> Mapping[str, float] | None:
    """Slot weights of a mix at a site, or None when they depend on rows or input."""
    if isinstance(mix, str):
        weights: Mapping[str, float] | None = layer.mixes[mix].static()  # type: ignore[operator]
        return weights
    if any(isinstance(weight, Tensor) for weight in mix.values()):
        return None
    return {slot: float(weight) for slot, weight in mix.items()}


def merged(layer: SlotLayer, weights: Mapping[str, float]) -> Factors:
    """One factor pair for a weighted sum of slots. Slots that share U (the same tensor) are added, not stacked."""
    parts = [(weight, layer.factors(slot)) for slot, weight in weights.items()]
    u = torch.cat([weight * part.u for weight, part in parts], dim=1)
    v = torch.cat([part.v for _, part in parts], dim=0)
    offsets = [weight * part.c for weight, part in parts if part.c is not None]
    c = torch.stack(offsets).sum(0) if offsets else None
    if len(parts) > 1 and all(part.u.shape == parts[0][1].u.shape for _, part in parts):
        first = parts[0][1].u
        if all(torch.equal(part.u, first) for _, part in parts):
            u, v = first, torch.stack([weight * part.v for weight, part in parts]).sum(0)
    return Factors(u, v, c)


def stacked(own: Factors, more: Factors | None) -> Factors:
    """The sum of two maps, of which the second has no offset."""
    if more is None:
        return own
    return Factors(torch.cat([own.u, more.u.to(own.u)], dim=1), torch.cat([own.v, more.v.to(own.v)]), own.c)


def _in_order(file: Path) -> None:
    """peft writes sets in whatever order they have in this process; sorted, equal adapters are equal files."""
    written = json.loads(file.read_text(encoding="utf-8"))
    written["target_modules"] = sorted(written["target_modules"])
    file.write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")


@dataclass(frozen=True)
class Personal:
    """An adapter as peft has it. tensors: by their names in its file. ranks: of each adapted map, by path. whole: paths
    of modules that are saved as they are."""

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    whole: Sequence[str]
    biased: bool


def personal_adapter(host: Host, mix: Mix) -> Personal | None:
    """The adapter that is loaded in `host`, mixed. None when the mix depends on the input or is the bare backbone."""
    factors: dict[str, Factors] = {}
    replaced: dict[str, Mapping[str, Tensor]] = {}
    head = host.backbone.task_head
    for name, layer in host.layers.items():
        weights = static_weights(layer, mix)
        if not weights:
            return None
        if layer.low_rank:
            factors[layer.site.path] = stacked(merged(layer, weights), host.base_factors(name))
        else:
            replaced[layer.site.path] = layer.whole(weights)
    biased = any(item.c is not None for item in factors.values())
    tensors: dict[str, Tensor] = {}
    for path, item in factors.items():
        prefix = f"base_model.model.{path}."
        tensors[prefix + "lora_A.weight"] = item.v.detach()
        tensors[prefix + "lora_B.weight"] = item.u.detach()
        if biased:
            offset = item.c if item.c is not None else item.u.new_zeros(item.u.shape[0])
            tensors[prefix + "lora_B.bias"] = offset.detach()
    for path in head:
        for name, parameter in host.backbone.module(path).named_parameters():
            tensors[f"base_model.model.{path}.{name}"] = parameter.detach()
    for path, params in replaced.items():
        for name, value in params.items():
            tensors[f"base_model.model.{path}.{name}"] = value.detach()
    ranks = {path: int(item.v.shape[0]) for path, item in factors.items()}
    return Personal(tensors, ranks, [*head, *replaced], biased)


def save_personal(host: Host, mix: Mix, folder: Path) -> bool:
    """Writes the adapter that is loaded in `host`, mixed, as `adapter_config.json` and `adapter_model.safetensors`.

    A task head is saved with it, modules that a slot replaces as a whole, and the delta that is always on in the
    backbone, if there is one: the adapter then has the rank of both. Returns False, writing nothing, when the mix
    depends on the input or is the bare backbone. Load it with `peft.PeftModel.from_pretrained(backbone, folder)`.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    found = personal_adapter(host, mix)
    if found is None:
        return False
    ranks = found.ranks
    largest = max(ranks.values(), default=1)
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        target_modules=sorted(ranks),
        lora_bias=found.biased,
        modules_to_save=[*found.whole] or None,
        inference_mode=True,
    )
    config.base_model_name_or_path = host.backbone.card.source or host.backbone.name
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    _in_order(folder / "adapter_config.json")
    tensors = {name: value.to("cpu", copy=True).contiguous() for name, value in found.tensors.items()}  # none are tied
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    return True
