"""Gradients of single samples, for the statistics that want them.

Where rows of a batch have nothing to do with each other, one forward and one backward pass give those of all rows:
each row goes through params of its own (see `Host.by_row`), so that the gradient of the sum of losses holds every
row's. This is so when the backbone keeps rows apart, the layers take params by row, and the loss is declared `apart`.
Anything else goes through one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.data import Sample
from pfl_platform.training.surfaces import Statistic, Want
from pfl_platform.training.view import BatchView

Gradients = Mapping[str, Mapping[str, Tensor]]
"""Name of a want -> key -> gradient."""
ViewOf = Callable[[Sequence[Sample], int], BatchView]
"""(samples, number of the first in the batch) -> a view of them."""
HELD = 2**30
"""Bytes of gradients that are held at a time; at least one row's."""


def shown(host: Host, statistic: Statistic, acc: Any, samples: Sequence[Sample], view_of: ViewOf) -> Any:
    """Shows a statistic sample after sample, with the gradients that it wants."""
    training = [tensor for tensor in host.params.values() if tensor.requires_grad]
    size = rows_at_a_time(host, statistic.wants)
    for start in range(0, len(samples), size):
        rows = samples[start : start + size]
        found = together(host, statistic.wants, view_of(rows, start)) if size > 1 else None
        for number, sample in enumerate(rows):
            row = view_of([sample], start + number)
            row.gradients = alone(host, statistic.wants, row) if found is None else found[number]
            with torch.no_grad():
                acc = statistic.add(acc, row)
    host.select(Keys())
    for tensor in training:
        tensor.requires_grad_(True)
    return acc


def rows_at_a_time(host: Host, wants: Sequence[Want]) -> int:
    """How many rows one pass takes: 1 where they cannot go together, else as many as `HELD` has room for."""
    if not all(want.apart and host.takes_rows(want.keys) for want in wants):
        return 1
    size = sum(4 * host.params[key].numel() for want in wants for key in host.params if key in want.keys)
    return max(1, HELD // max(1, size))


def together(host: Host, wants: Sequence[Want], view: BatchView) -> list[Gradients]:
    """Every row's gradients, from one pass for each want; a pass does not see what another has left."""
    found: list[dict[str, dict[str, Tensor]]] = [{} for _ in view.samples]
    view.stand_apart()
    for want in wants:
        host.select(want.keys)
        with torch.enable_grad(), host.by_row(want.keys, len(view.samples)) as leaves:
            gradients = torch.autograd.grad(want.loss(view).sum(), list(leaves.values()), allow_unused=True)
        for number, row in enumerate(found):
            row[want.name] = {
                key: torch.zeros_like(leaf[number]) if gradient is None else gradient[number]
                for (key, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            }
    return list(found)


def alone(host: Host, wants: Sequence[Want], row: BatchView) -> Gradients:
    """The gradients of one sample's losses; zeros where a param plays no part in one."""
    found = {}
    for want in wants:
        chosen = host.select(want.keys)
        with torch.enable_grad():
            gradients = torch.autograd.grad(want.loss(row).sum(), list(chosen.values()), allow_unused=True)
        found[want.name] = {
            key: torch.zeros_like(tensor) if gradient is None else gradient
            for (key, tensor), gradient in zip(chosen.items(), gradients, strict=True)
        }
    return found
