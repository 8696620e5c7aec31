"""What the engine `deepspeed` holds beside a client's training, by formula; see `zero`, which makes the engine."""

from __future__ import annotations

BUCKET = 1 << 20
"""Least number of values that are sent at once."""
FLOAT = 4


def zero_bytes(adapters: int, stage: int, shards: int) -> int:
    """Bytes. adapters: of all that may train, float32.

    Stage 0 averages gradients in one flat copy where several ranks share them. Stages 1 and above keep a flat copy of a
    rank's share of the params and of the averaged gradients, and send by buckets.

    >>> zero_bytes(8 << 20, 0, 1), zero_bytes(8 << 20, 0, 2) == 8 << 20, zero_bytes(8 << 20, 2, 2) == (8 + 8) << 20
    (0, True, True)
    """
    if stage == 0:
        return adapters if shards > 1 else 0
    return 2 * adapters // shards + max(FLOAT * BUCKET, adapters)
