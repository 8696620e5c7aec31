"""Which decoder layers carry a PQ-LoRA, so that layers at the same relative depth meet (FedMosaic, 4.2.1)."""

from __future__ import annotations

from typing import Literal, get_args

from pfl_platform.errors import UserError, nearest

Rule = Literal["eq6", "alg2"]


def pq_layers(num_layers: int, num_blocks: int, rule: Rule = "eq6") -> tuple[int, ...]:
    """Layer indices, from 0, of the PQ-LoRA modules; the k-th entry is matched with the k-th of every other backbone.

    The paper counts layers from 1 and gives two rules, which agree when `num_blocks` divides `num_layers`. With
    b = floor(num_layers / num_blocks):
        eq6   Eq. 6, also what the published code does: block k < num_blocks gets layer k * b, the last block the last
              layer. Layers that are left over lengthen the last block.
        alg2  Alg. 2: block k gets layer k * b + (num_layers mod num_blocks). They lengthen the first block.

    Raises `UserError` for an unknown rule, and when there are more blocks than layers.

    >>> pq_layers(28, 4)
    (6, 13, 20, 27)
    >>> pq_layers(6, 4), pq_layers(6, 4, "alg2")
    ((0, 1, 2, 5), (2, 3, 4, 5))
    """
    if rule not in get_args(Rule):
        raise UserError(f"PQ-LoRA placement rule '{rule}' is not known.{nearest(rule, get_args(Rule))}")
    if num_blocks < 1:
        raise UserError(f"PQ-LoRA needs at least one block, but {num_blocks} were asked for.")
    if num_blocks > num_layers:
        raise UserError(
            f"PQ-LoRA cannot make {num_blocks} blocks out of {num_layers} layers: ask for at most {num_layers} blocks."
        )
    size, rest = divmod(num_layers, num_blocks)
    if rule == "alg2":
        return tuple(k * size + rest - 1 for k in range(1, num_blocks + 1))
    return (*(k * size - 1 for k in range(1, num_blocks)), num_layers - 1)
