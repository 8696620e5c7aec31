"""Randomness has an address.

Every random number of a run comes from a generator that is made on the spot from a path such as
`(seed, "memory", round, client, step)`. Nothing is drawn from a global generator and no generator state is ever saved,
so the order of clients, the number of processes and a crash in between change nothing.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import torch

Address: TypeAlias = str | int


def seed_of(*address: Address) -> int:
    """A 63-bit seed from an address; equal addresses give equal seeds on every machine.

    >>> seed_of(0, "batch", "client-3", 17) == seed_of(0, "batch", "client-3", 17)
    True
    >>> seed_of(0, "batch", "1", 1) == seed_of(0, "batch", 1, 1)   # the type counts
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_rng(*address: Address) -> torch.Generator:
    """A CPU `torch.Generator` at an address."""
    return torch.Generator().manual_seed(seed_of(*address))


def numpy_rng(*address: Address) -> np.random.Generator:
    """A numpy generator (PCG64) at an address."""
    return np.random.default_rng(seed_of(*address))
