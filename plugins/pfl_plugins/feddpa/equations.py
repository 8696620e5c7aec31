"""The instance-wise weight of FedDPA (2403.19211, dynamic weighting)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


def instance_weights(questions: Tensor, own: Tensor, w_max: float) -> Tensor:
    """`alpha(x) = w_max * mean_i cos(e(x), e(x_i))`, between 0 and 1, shape (rows,), float32.

    questions: e(x) of a batch, (rows, d). own: e(x_i) of the client's own samples, (instances, d). A negative mean
    counts as 0.

    >>> import torch
    >>> own = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> instance_weights(torch.tensor([[5.0, 0.0], [3.0, 4.0], [-1.0, -1.0]]), own, 0.5)   # 1 / 2, (0.6 + 0.8) / 2
    tensor([0.2500, 0.3500, 0.0000])
    """
    cosines = normalize(questions.float(), dim=-1) @ normalize(own.float(), dim=-1).T
    return (w_max * cosines.mean(dim=1)).clamp(0.0, 1.0)
