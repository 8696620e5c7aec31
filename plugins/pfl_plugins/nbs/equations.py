"""The Nash bargaining solution of clients' deltas.

Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, 2202.01017, Eq. 2: with G the matrix of the
players' directions, alpha > 0 solves `G^T G alpha = 1 / alpha`. That is where the strictly convex function
`0.5 alpha^T M alpha - sum_i log alpha_i`, M = G^T G, has a zero gradient, so Newton's method finds it; the published
code uses a sequence of convex programs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors

_STEPS = 500


def gram(deltas: Iterable[Tensors]) -> Tensor:
    """`M_ij = <delta_i, delta_j>` over all tensors, float64 (n, n).

    >>> gram([{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 0.0])}])
    tensor([[5., 3.],
            [3., 9.]], dtype=torch.float64)
    """
    rows = list(deltas)
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for key in sorted(rows[0]) if rows else ():
        stack = torch.stack([row[key].double().flatten() for row in rows])
        found += stack @ stack.T
    return found


def bargain(matrix: Tensor) -> Tensor:
    """alpha > 0 with `M alpha = 1 / alpha`, (n,), for a positive definite M (n, n), float64.

    >>> bargain(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))   # alpha_i = 1 / ||g_i||
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    roots = matrix.diagonal().sqrt()
    scaled = matrix / roots.outer(roots)  # unit directions: the solution is that of M, times the norms
    alpha = torch.ones(len(matrix), dtype=torch.float64)

    for _ in range(_STEPS):
        slope = scaled @ alpha - 1.0 / alpha
        step = torch.linalg.solve(scaled + torch.diag(alpha.square().reciprocal()), -slope)
        decrement = math.sqrt(max(0.0, -float(slope @ step)))
        # The function is self-concordant: this length keeps alpha positive and needs no search along the step.
        alpha = alpha + (step if decrement < 0.25 else step / (1.0 + decrement))
        if decrement < 1e-10:
            break
    return alpha / roots


def residual(matrix: Tensor, alpha: Tensor) -> float:
    """`max_i |alpha_i (M alpha)_i - 1|`: 0 at the solution, whatever the scale.

    >>> residual(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64))
    3.0
    """
    return float((alpha * (matrix @ alpha) - 1.0).abs().max())


def shares(matrix: Tensor, ridge: float) -> tuple[Tensor, float]:
    """(weights that sum to 1, residual). A client that did not move brings nothing to the table and has weight 0; when
    nobody moved, all weigh the same.

    >>> shares(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)), 1e-12)[0]
    tensor([0.3333, 0.6667, 0.0000], dtype=torch.float64)
    """
    sizes = matrix.diagonal()
    moved = (sizes > 1e-24 * sizes.max()).nonzero().flatten() if float(sizes.max()) > 0 else torch.arange(0)
    if len(moved) == 0:
        return torch.full((len(matrix),), 1.0 / len(matrix), dtype=torch.float64), 0.0
    part = matrix[moved][:, moved]
    part = part + ridge * part.diagonal().mean() * torch.eye(len(part), dtype=torch.float64)
    alpha = bargain(part)
    weights = torch.zeros(len(matrix), dtype=torch.float64)
    weights[moved] = alpha / alpha.sum()
    return weights, residual(part, alpha)
