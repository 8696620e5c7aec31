"""Sums of costs. Works on `Cost` and on what JSON made of it; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfl_platform.federation.tasks import Cost

FIELDS: tuple[str, ...] = (
    "seconds",
    "train_seconds",
    "steps",
    "flops",
    "flops_formula",
    "peak_memory",
    "up_payload",
    "up_wire",
    "down_payload",
    "down_wire",
    "head_payload",
    "head_wire",
    "score_payload",
    "score_wire",
)
"""The fields of `Cost`. All add up but `peak_memory`, of which the largest counts."""


def total(costs: Iterable[Cost | Mapping[str, Any]]) -> dict[str, float]:
    """The sum as JSON; every field is there, whole numbers stay whole. A field that an older record lacks counts as 0.

    >>> both = total([{"steps": 2, "peak_memory": 7}, {"steps": 3, "peak_memory": 5}])
    >>> both["steps"], both["peak_memory"], both["up_wire"]
    (5, 7, 0)
    """
    result: dict[str, float] = dict.fromkeys(FIELDS, 0)
    for cost in costs:
        fields: Mapping[str, Any] = cost if isinstance(cost, Mapping) else asdict(cost)
        for name in FIELDS:
            value = fields.get(name, 0)
            result[name] = max(result[name], value) if name == "peak_memory" else result[name] + value
    return result
