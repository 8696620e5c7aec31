"""Sums of costs. Works on `Cost` and on what JSON made of it; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
BYTES: tuple[str, ...] = tuple(name for name in FIELDS if name.endswith(("_payload", "_wire")))
"""Those that count what travels."""


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


QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "steps": ("steps",),
    "flops": ("flops",),
    "bytes": ("up_payload", "down_payload"),
    "seconds": ("train_seconds",),
}
"""What runs can be held to, and the fields of `Cost` that it is the sum of."""


def amount(cost: Mapping[str, Any], quantity: str) -> float:
    """One quantity of a cost.

    >>> amount({"up_payload": 30, "down_payload": 10, "flops": 7.0}, "bytes")
    40
    """
    found: float = sum(cost.get(field, 0) for field in QUANTITIES[quantity])
    return found


def spent(records: Iterable[Mapping[str, Any]], quantity: str) -> float:
    """What the rounds of a run took, from their records: all clients, and for everything but `steps` what the server
    trained and exchanged in them. Neither what came before round 0 nor the answering of questions is in it."""
    result = 0.0
    for record in records:
        result += sum(amount(entry["cost"], quantity) for entry in record["clients"].values())
        result += amount(record.get("shared_cost") or {}, quantity) if quantity != "steps" else 0
    return result


def held(budget: Mapping[str, Any], records: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` says of a run's budget. before: the cost of what came before round 0.

    name, quantity, method, asked, expected: as the run was given them (`config.Budget`). reached: the ledger's sum over
    what came before round 0 and the rounds. deviation: of that from what was asked, in per cent. before: the part that
    came before round 0; local steps are a client's, so none of them. spent: steps, flops, bytes and seconds, in all.
    """
    quantity = budget["quantity"]
    early = {name: amount(before, name) if name != "steps" else 0 for name in QUANTITIES}
    sums = {name: spent(records, name) + early[name] for name in QUANTITIES}
    return {
        **budget,
        "reached": sums[quantity],
        "deviation": 100 * (sums[quantity] / budget["asked"] - 1),
        "before": early[quantity],
        "spent": sums,
    }
