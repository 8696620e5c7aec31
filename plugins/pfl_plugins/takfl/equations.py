"""The equations of TAKFL on named tensors; theta_i is a prototype's average, theta_ij what it became with teacher j."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors


def task_vector(start: Tensors, taught: Tensors) -> dict[str, Tensor]:
    """`tau_ij = theta_ij - theta_i`, per key of `start`.

    >>> import torch
    >>> task_vector({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.5]), "other": torch.ones(1)})
    {'a': tensor([0.5000])}
    """
    return {key: taught[key] - value for key, value in start.items()}


def merged(start: Tensors, vectors: Sequence[Tensors], lambdas: Sequence[float]) -> dict[str, Tensor]:
    """`theta_i + sum_j lambda_ij tau_ij`.

    >>> import torch
    >>> vectors = [{"a": torch.tensor([1.0])}, {"a": torch.tensor([-3.0])}]
    >>> merged({"a": torch.tensor([1.0])}, vectors, [0.5, 0.25])
    {'a': tensor([0.7500])}
    """
    total = {key: value.clone() for key, value in start.items()}
    for vector, weight in zip(vectors, lambdas, strict=True):
        for key, value in total.items():
            value.add_(vector[key], alpha=weight)
    return total


def length(vector: Mapping[str, Tensor]) -> float:
    """The norm of all its values together."""
    return float(sum(float(value.double().square().sum()) for value in vector.values()) ** 0.5)


def candidates(teachers: int) -> list[tuple[float, ...]]:
    """Lambdas to choose from, each of sum 1: equal ones; for each teacher, all of the weight, and half of it with the
    rest shared by the others. The first is the equal ones, so that a tie changes nothing.

    >>> candidates(2)
    [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    >>> candidates(3)[4]
    (0.5, 0.25, 0.25)
    """
    found = [tuple(1.0 / teachers for _ in range(teachers))]
    for share in (1.0, 0.5):
        for chosen in range(teachers):
            rest = (1.0 - share) / max(1, teachers - 1)
            found.append(tuple(share if j == chosen else rest for j in range(teachers)) if teachers > 1 else (1.0,))
    return list(dict.fromkeys(found))
