"""Which client gets which pictures: a Dirichlet law over clients for each class, the same for train and test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfl_platform.errors import UserError

Places = NDArray[np.int64]


def shares(classes: int, clients: int, alpha: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """What part of each class each client gets, (classes, clients); rows sum to 1 and are drawn from Dir(alpha, ...).

    Raises `UserError` where alpha is so small that nothing can be drawn.
    """
    drawn = rng.dirichlet(np.full(clients, alpha), size=classes)
    if not np.allclose(drawn.sum(axis=1), 1.0):
        raise UserError(f"alpha {alpha} is too small to draw from; choose a larger one.")
    return drawn


def dealt(labels: Places, law: NDArray[np.float64], places: Places, rng: np.random.Generator) -> list[Places]:
    """The places of each client, in random order: of every class the parts that the law (classes, clients) names.

    A class's pictures are shuffled and cut at the rounded sums of the parts, so that all are dealt. Clients take their
    turns in a random order for each class: else rounding would favour the same ones in all.

    >>> law = np.array([[0.5, 0.5], [1.0, 0.0]])
    >>> found = dealt(np.array([0, 0, 1, 1]), law, np.arange(4), np.random.default_rng(0))
    >>> [len(part) for part in found], sorted(np.concatenate(found).tolist())
    ([3, 1], [0, 1, 2, 3])
    """
    found: list[list[Places]] = [[] for _ in range(law.shape[1])]
    for label, parts in enumerate(law):
        own = rng.permutation(places[labels[places] == label])
        turns = rng.permutation(len(parts))
        cuts = np.rint(np.cumsum(parts[turns])[:-1] * len(own)).astype(np.int64)
        for client, piece in zip(turns, np.split(own, cuts), strict=True):
            found[client].append(piece)
    return [rng.permutation(np.concatenate(pieces)) for pieces in found]
