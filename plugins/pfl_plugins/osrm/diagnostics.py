"""What the paper's figures show, as numbers: the rank of H, the change of A by training, interference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.lowrank.decompose import numerical_rank
from pfl_platform.lowrank.deltas import Delta, double
from pfl_platform.lowrank.gauge import drift

Rows: TypeAlias = Mapping[str, Tensor]
"""Site -> features of one client's samples, (n, d_in)."""
Deltas: TypeAlias = Mapping[str, Delta]
"""Site -> what one client's adapter adds there."""


def deltas_of(state: Tensors, slot: str, scale: float) -> dict[str, Delta]:
    """The adapter in a slot of a client's state."""
    sites = [key.split("/")[1] for key in sorted(state) if key.startswith(f"{slot}/") and key.endswith("/A")]
    return {site: Delta(state[f"{slot}/{site}/B"], state[f"{slot}/{site}/A"], scale, site) for site in sites}


def ranks(rows: Tensor, counts: Sequence[int], tol: float = 1e-6) -> list[int]:
    """Figure 2: the numerical rank of the first k rows, for each k.

    >>> ranks(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), [1, 2, 3])
    [1, 1, 2]
    """
    return [numerical_rank(torch.linalg.svdvals(double(rows[:count])), tol) for count in counts]


def change(before: Deltas, after: Deltas) -> dict[str, float]:
    """Figure 3: per site how far A has moved, rotations apart: `min_Omega ||Omega A - A_0||_F / ||A_0||_F`."""
    return {site: drift(after[site].down, delta.down) for site, delta in before.items()}


def reach(delta: Delta, rows: Tensor) -> float:
    """`||A H^T||_F / (||A||_F ||H||_F)`, from 0 (A hears nothing of H) to 1; 0 when either is zero.

    >>> reach(Delta(torch.zeros(1, 1), torch.tensor([[1.0, 0.0]])), torch.tensor([[3.0, 4.0]]))
    0.6
    """
    sizes = float(double(delta.down).norm() * double(rows).norm())
    return float((double(delta.down) @ double(rows).T).norm()) / sizes if sizes > 0 else 0.0


def response(delta: Delta, rows: Tensor) -> float:
    """`||s B A H^T||_F / ||H||_F`: what an adapter adds to the output for these inputs. On inputs of another task that
    is interference (Eq. 1)."""
    size = float(double(rows).norm())
    product = double(delta.up) @ (double(delta.down) @ double(rows).T)
    return abs(delta.scale) * float(product.norm()) / size if size > 0 else 0.0


def table(
    adapters: Mapping[str, Deltas], rows: Mapping[str, Rows], measure: Callable[[Delta, Tensor], float]
) -> Tensor:
    """`reach` or `response` of the adapter of client j (row) on the features of client i (column), the mean over sites;
    (K, K) float64."""
    found = torch.zeros(len(adapters), len(rows), dtype=torch.float64)
    for j, deltas in enumerate(adapters.values()):
        for i, features in enumerate(rows.values()):
            found[j, i] = sum(measure(delta, features[site]) for site, delta in deltas.items()) / len(deltas)
    return found


def apart(values: Tensor) -> tuple[float, float]:
    """Means on the diagonal of a table, which is what training was for, and off it, which is interference.

    >>> apart(torch.tensor([[3.0, 1.0], [2.0, 5.0]]))
    (4.0, 1.5)
    """
    count, own = len(values), float(values.diagonal().mean())
    return own, (float(values.sum()) - own * count) / (count * (count - 1)) if count > 1 else 0.0
