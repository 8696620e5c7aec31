"""What a client measures before training: the inputs of its adapted maps in the bare backbone (Eq. 4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Site, Tensors
from pfl_platform.training.surfaces import Planned, Source, Statistic, View

NAME = "features"
ROWS = Keys(f"{NAME}/*/rows")
"""What is sent: rows (n, d_in) under the name of the first site that reads an input."""
INPUTS = f"{NAME}/inputs"
"""Private: for each site in order, the index of the first site with the same input, int64 (sites,)."""


def rows_key(site: str) -> str:
    return f"{NAME}/{site}/rows"


@dataclass
class _Seen:
    """Which sites share an input, and per first site the rows so far."""

    inputs: list[int]
    rows: dict[int, list[Tensor]] = field(default_factory=dict)


class Features(Statistic):
    """The mean over a sample's tokens of the input of every adapted map, no adapter on, padding left out.

    Sent per input, float32: the mean of these over all samples, (1, d_in), or (`full`) one row per sample. Maps that
    read the same tensor, such as those of queries, keys and values, share a row. noise: standard deviation of what is
    added before it is sent, relative to the root mean square of the rows. samples: how many a plan reckons with.
    """

    name = NAME

    def __init__(
        self,
        sites: Sequence[Site],
        data: Source,
        amount: int,
        variant: Literal["mean", "full"],
        noise: float = 0.0,
        samples: int = 0,
    ) -> None:
        self.sites = tuple(sites)
        self.data = data
        self.amount = amount
        self.variant = variant
        self.noise = noise
        self.samples = samples

    def sends(self, plan: Planned) -> Mapping[str, Tensor]:
        rows = 1 if self.variant == "mean" else self.samples
        return {
            rows_key(plan.sites[index].name): plan.tensor(rows, plan.sites[index].in_features)
            for index in sorted(set(plan.readers))
        }

    def add(self, acc: _Seen | None, view: View) -> _Seen:
        paths = [site.path for site in self.sites]
        output = view.forward({}, grad=False, train=False, taps=paths)
        seen = acc or _Seen(shared_inputs([output.taps[path] for path in paths]))
        for index in sorted(set(seen.inputs)):
            mask = view.backbone().mask(paths[index], output.encoded.inputs)
            found = token_means(output.taps[paths[index]], mask)
            seen.rows.setdefault(index, []).append(found.cpu().double())
        return seen

    def finish(
        self, acc: _Seen, private: Tensors, rng: Callable[..., torch.Generator]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        sent = {}
        for index, parts in acc.rows.items():
            site, rows = self.sites[index].name, torch.cat(parts)
            if self.variant == "mean":
                rows = rows.mean(dim=0, keepdim=True)
            if self.noise > 0:
                drawn = torch.randn(rows.shape, generator=rng(site), dtype=rows.dtype)
                rows = rows + self.noise * rows.square().mean().sqrt() * drawn
            sent[rows_key(site)] = rows.float()
        return sent, {INPUTS: torch.tensor(acc.inputs)}


def token_means(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions with mask 1 of x (rows, positions, d), shape (rows, d), float32; zero for a row without
    any.

    >>> token_means(torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    kept = x.float().masked_fill(mask[..., None] == 0, 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def shared_inputs(taps: Sequence[Any]) -> list[int]:
    """For each tensor the index of the first that is the very same.

    >>> a, b = torch.zeros(1), torch.zeros(1)
    >>> shared_inputs([a, a, b, a])
    [0, 0, 2, 0]
    """
    return [next(first for first, other in enumerate(taps) if other is tap) for tap in taps]
