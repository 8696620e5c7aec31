"""Small adapters to merge, and every merging rule once more as a dense float64 formula, to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_platform.federation.merging import Inputs, Merged, Target
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_plugins.merging.merger import SpaceMerger

SHAPES = {"g/one": (6, 9), "g/two": (8, 5)}
NAMES = ("ann", "bob", "cyd")
WEIGHTS = [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.3, 0.2)]
manager = PluginManager()


def merger(method: str, **options: Any) -> SpaceMerger:
    found = manager.make("aggregator", method, options).merger
    assert isinstance(found, SpaceMerger)
    return found


def adapters(
    seed: int = 0, count: int = 3, ranks: Sequence[int] = (2, 2, 2), scales: Sequence[float] = (2.0, 2.0, 2.0)
) -> list[dict[str, Delta]]:
    rng = torch_rng("adapters", seed)
    return [
        {
            module: Delta(
                torch.randn(d_out, ranks[k], generator=rng, dtype=torch.float64),
                torch.randn(ranks[k], d_in, generator=rng, dtype=torch.float64),
                scales[k],
                NAMES[k],
            )
            for module, (d_out, d_in) in SHAPES.items()
        }
        for k in range(count)
    ]


def statistic(name: str, who: str, module: str, rank: int = 2) -> Tensor:
    """Gram matrices and Fisher information, addressed by the adapter's name."""
    rng = torch_rng("statistic", name, who, module)
    d_out, d_in = SHAPES[module]
    if name == "gram":
        x = torch.randn(4, d_in, generator=rng, dtype=torch.float64)  # fewer tokens than features
        return x.T @ x / 4
    shape = {"A": (rank, d_in), "B": (d_out, rank), "W": (d_out, d_in)}[name[-1]]
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def inputs(
    found: Sequence[dict[str, Delta]], weights: Sequence[float] | None = None, names: Sequence[str] = NAMES
) -> Inputs:
    count = len(found)
    return Inputs(
        names=tuple(names[:count]),
        modules=tuple(sorted(found[0])),
        weights=tuple(weights or [1 / count] * count),
        read=lambda k, module: found[k][module],
        rng=lambda *parts: torch_rng(7, *parts),
        statistic=lambda name, k, module: statistic(name, names[k], module),
    )


def whole(rule: SpaceMerger, given_: Inputs) -> list[dict[str, Tensor]]:
    """The results without truncation, dense float64: one per target."""
    targets = [None] * (len(given_) if rule.personal else 1)
    results: list[dict[str, Tensor]] = [{} for _ in targets]
    for merged in rule.merge(given_, targets):
        for result, delta in zip(results, merged.deltas, strict=True):
            result[merged.module] = delta.dense(torch.float64) if isinstance(delta, Delta) else delta.double()
    return results


def truncated(rule: SpaceMerger, given_: Inputs, target: Target) -> dict[str, Merged]:
    return {merged.module: merged for merged in rule.merge(given_, [target])}


def stacks(found: Sequence[dict[str, Delta]]) -> dict[str, Tensor]:
    return {module: torch.stack([one[module].dense(torch.float64) for one in found]) for module in sorted(found[0])}


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    size = max(float(other.abs().max()), 1e-300)
    return float((one.double() - other.double()).abs().max()) <= tolerance * size


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


# The formulas, dense and entry by entry -------------------------------------------------------------------------------


def reference_trim(flat: Tensor, density: float) -> Tensor:
    """Rows trimmed to int(density P) entries of largest magnitude, the first among equal ones."""
    out = torch.zeros_like(flat)
    keep = flat.shape[1] if density >= 1 else max(1, int(density * flat.shape[1]))
    for k, row in enumerate(flat.tolist()):
        for j in sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[:keep]:
            out[k, j] = row[j]
    return out


def reference_ties(flat: Tensor, weights: Sequence[float], reduce: str = "mean", elect: str = "total") -> Tensor:
    out = []
    for column in flat.T.tolist():
        counted = [t if elect == "total" else float(t > 0) - float(t < 0) for t in column]
        votes = [w * t for w, t in zip(weights, counted, strict=True)]
        sign = 1 if math.fsum(votes) >= -1e-15 else -1
        agreeing = [(w, t) for w, t in zip(weights, column, strict=True) if t * sign > 0]
        total = sum(w * t for w, t in agreeing)
        if reduce == "sum":
            out.append(len(weights) * total)
        else:
            out.append(total / sum(w for w, _ in agreeing) if agreeing else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def reference_iso(matrix: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    return s[:rank].mean() * u[:, :rank] @ vt[:rank]


def reference_emr(flats: Tensor, weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """T_uni and M_k of rows (K, P)."""
    unified = []
    for column in flats.T.tolist():
        sign = 1 if sum(w * t for w, t in zip(weights, column, strict=True)) >= 0 else -1
        unified.append(sign * max([abs(t) for t in column if t * sign > 0], default=0.0))
    united = torch.tensor(unified, dtype=torch.float64)
    return united, [(row * united > 0).double() for row in flats]


def flattened(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[module].flatten(1) for module in sorted(found)], dim=1)


def cut_up(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([like[module][0].numel() for module in sorted(like)])
    return {m: part.view(like[m][0].shape) for m, part in zip(sorted(like), parts, strict=True)}
