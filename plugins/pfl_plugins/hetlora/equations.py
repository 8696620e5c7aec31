"""The equations of HETLoRA (2401.06432) on factors: tails, pruning, padding, and weights by norm.

Params are under `slot/site/A` (r, d_in) and `slot/site/B` (d_out, r). A pruned component is a zero row of A and a zero
column of B, which training leaves at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pfl_platform.lowrank.deltas import Delta, norm


def kept_rank(rank: int, gamma: float, r_min: int) -> int:
    """The rank after pruning: `floor(gamma r)`, but not below `r_min`, and never more than `r`.

    >>> kept_rank(50, 0.99, 5), kept_rank(8, 0.5, 5), kept_rank(4, 0.5, 5)
    (49, 5, 4)
    """
    return min(rank, max(int(gamma * rank + 1e-9), r_min))


def tail(params: Mapping[str, Tensor], start: int) -> Tensor:
    """`sum over modules ||B[:, start:]||_F ||A[start:, :]||_F`, scalar, differentiable.

    >>> a, b = torch.tensor([[9.0, 9.0], [3.0, 4.0]]), torch.tensor([[9.0, 2.0]])
    >>> tail({"s/q/A": a, "s/q/B": b}, 1)   # 2 * 5
    tensor(10.)
    """
    products = [
        params[f"{module}/B"][:, start:].norm() * params[f"{module}/A"][start:].norm() for module in modules(params)
    ]
    return torch.stack(products).sum()


def modules(params: Mapping[str, Tensor]) -> list[str]:
    """`slot/site` of every pair of factors, sorted."""
    return sorted(key[:-2] for key in params if key.endswith("/A"))


def rank_of(params: Mapping[str, Tensor]) -> int:
    """The components that have not been pruned: up to the last row of any A that is not zero."""
    found = 0
    for module in modules(params):
        rows = params[f"{module}/A"].any(dim=1).nonzero()
        found = max(found, int(rows.max()) + 1 if len(rows) else 0)
    return found


def cut(params: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Only the first `rank` components; what is no factor stays."""
    return {key: _first(key, value, rank).contiguous() for key, value in params.items()}


def zeroed(params: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The same shapes with all components from `rank` on at zero."""
    return {key: padded(_first(key, value, rank), _side(key, value), key) for key, value in params.items()}


def padded(value: Tensor, rank: int, key: str) -> Tensor:
    """A factor with zero components up to `rank`.

    >>> padded(torch.ones(1, 2), 2, "s/q/A").tolist(), padded(torch.ones(2, 1), 2, "s/q/B").tolist()
    ([[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]])
    """
    missing = rank - _side(key, value)
    return pad(value, (0, 0, 0, missing) if key.endswith("/A") else (0, missing))


def extended(key: str, first: Tensor, longer: Tensor) -> Tensor:
    """`first`, and behind it the components of `longer` that it does not have.

    >>> extended("s/q/A", torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0]])).tolist()
    [[1.0], [3.0]]
    """
    axis, have = (0 if key.endswith("/A") else 1), _side(key, first)
    more = _side(key, longer) - have
    return torch.cat([first, longer.narrow(axis, have, more)], dim=axis) if more > 0 else first


def _first(key: str, value: Tensor, rank: int) -> Tensor:
    return value[:rank] if key.endswith("/A") else value[:, :rank]


def _side(key: str, value: Tensor) -> int:
    return value.shape[0 if key.endswith("/A") else 1]


def norms(params: Mapping[str, Tensor]) -> dict[str, float]:
    """Module -> `||B A||_F`, from the factors alone.

    >>> norms({"s/q/A": torch.tensor([[3.0, 4.0]]), "s/q/B": torch.tensor([[2.0], [0.0]])})
    {'s/q': 10.0}
    """
    return {module: norm(Delta(params[f"{module}/B"], params[f"{module}/A"])) for module in modules(params)}


def shares(values: Sequence[float]) -> list[float]:
    """Weights that sum to 1, in proportion; equal where all are zero.

    >>> shares([1.0, 3.0]), shares([0.0, 0.0])
    ([0.25, 0.75], [0.5, 0.5])
    """
    total = sum(values)
    return [value / total for value in values] if total > 0 else [1 / len(values)] * len(values)
