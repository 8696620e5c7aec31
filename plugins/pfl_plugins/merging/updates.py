"""Adapters as they stand in updates: keys, deltas, forms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation
from pfl_platform.federation.merging import Target
from pfl_platform.lowrank.deltas import Delta

FACTORS = Keys("*/*/A", "*/*/B")
"""Where factors are; what `is_factor` says no to is something else (a statistic of a factor, say)."""


def is_factor(key: str) -> bool:
    """Whether a key is `slot/site/A` or `slot/site/B`.

    >>> is_factor("global/layer0.q_proj/A"), is_factor("fisher/global/layer0.q_proj/A"), is_factor("gram/A")
    (True, False, False)
    """
    return key.count("/") == 2 and key.endswith(("/A", "/B"))


def target_of(fed: Federation, client_id: str) -> Target:
    """The form of a client's adapter."""
    signature = fed.adapter_of(client_id).signature()
    return Target(int(signature["r"]), float(signature["scale"]))


def scale_of(fed: Federation, client_id: str) -> float:
    return target_of(fed, client_id).scale


def place_of(backbone: str, target: Target) -> str:
    """Where the state keeps what a form of adapter gets.

    >>> place_of("m", Target(8, 2.0))
    'm r=8 s=2.0'
    """
    return f"{backbone} r={target.rank} s={target.scale}"


def deltas_of(tensors: Mapping[str, Tensor], scale: float, name: str) -> dict[str, Delta]:
    """Module (`slot/site`) -> its delta, from params under `slot/site/A` and `/B`; other keys are left alone."""
    modules = sorted({key.rpartition("/")[0] for key in tensors if is_factor(key)})
    for module in modules:
        if missing := [part for part in "AB" if f"{module}/{part}" not in tensors]:
            raise UserError(f"The update of client '{name}' has no '{module}/{missing[0]}'.")
    return {
        module: Delta(tensors[f"{module}/B"], tensors[f"{module}/A"], scale, f"{name}: {module}") for module in modules
    }


def size_of(delta: Delta | Tensor) -> int:
    """Bytes to send it: its factors or its entries, in its own dtype."""
    if isinstance(delta, Tensor):
        return delta.numel() * delta.element_size()
    return (delta.up.numel() + delta.down.numel()) * delta.dtype.itemsize


def sites_of(fed: Federation, client_id: str) -> list[str]:
    """Names of the maps that a client adapts. Raises `UserError` for params that mean the same in all backbones."""
    sites = fed.adapter_of(client_id).sites(fed.load(fed.host_of(client_id)))
    for site in sites:
        if site.scope == "all":
            raise UserError(
                f"The params of '{site.name}' mean the same in all backbones and are no factors of a delta; merging "
                "methods work with adapters that have an A and a B at every map."
            )
    return [site.name for site in sites]
