"""Who takes part in a round."""

from __future__ import annotations

import numpy as np

from pfl_platform.data import ClientData
from pfl_platform.federation.components import Federation
from pfl_platform.rng import numpy_rng


def select(fed: Federation, round_index: int) -> list[ClientData]:
    """The cohort: `cohort` of the clients that can be reached, or all of those, in the benchmark's order.

    They are drawn at (seed, "cohort", round) without replacement: alike, or one after the other in proportion to the
    train samples of those that are left (`participation.by: samples`).
    """
    reached = reachable(fed, round_index)
    size = fed.config.cohort or len(reached)
    if size >= len(reached):
        return reached
    weights = None
    if fed.config.participation.by == "samples":
        samples = np.array([client.num_examples for client in reached], dtype=np.float64)
        weights = samples / samples.sum()
    picked = numpy_rng(fed.seed, "cohort", round_index).choice(len(reached), size=size, replace=False, p=weights)
    return [reached[int(k)] for k in sorted(picked)]


def reachable(fed: Federation, round_index: int) -> list[ClientData]:
    """The clients whose draw at (seed, "reachable", round, client) lies below their share of rounds in
    `participation.availability`. Where nobody's does, the one that came nearest: a round has at least one client."""
    shares = fed.config.participation.availability
    if not shares:
        return list(fed.clients)
    default = shares.get("*", 1.0)
    draws = [
        float(numpy_rng(fed.seed, "reachable", round_index, client.client_id).random())
        / shares.get(client.client_id, default)
        for client in fed.clients
    ]
    return [client for client, draw in zip(fed.clients, draws, strict=True) if draw < 1.0] or [
        fed.clients[draws.index(min(draws))]
    ]
