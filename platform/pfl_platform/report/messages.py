"""What travelled, tensor by tensor, client by client and round by round: serialised bytes, from a run's records.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pfl_platform.report.units import byte_text

WAYS: Mapping[str, str] = {"up": "up", "down": "down", "score": "for evaluation", "head": "others' heads"}
"""Directions as `Outcome.messages` has them, and as a reader calls them."""

Messages: TypeAlias = dict[str, dict[str, dict[int, dict[str, int]]]]
"""client -> direction -> round (from 1) -> tensor -> bytes."""


def messages(
    records: Sequence[Mapping[str, Any]], read: Callable[[str], str], client: str | None, number: int | None
) -> Messages:
    """From the records of a run's rounds; `read` finds a text by its address. Only one client's, or one round's, if
    asked for."""
    known: dict[str, dict[str, int]] = {}  # most rounds send the same
    found: Messages = {}
    for record in records:
        at = int(record["round_index"]) + 1
        for name, entry in record["clients"].items():
            if number not in (None, at) or client not in (None, name):
                continue
            for way, address in entry.get("messages", {}).items():
                if address not in known:
                    known[address] = json.loads(read(address))
                found.setdefault(name, {}).setdefault(way, {})[at] = known[address]
    return found


def by_tensor(found: Messages) -> list[dict[str, Any]]:
    """One row per tensor, summed over clients and rounds: tensor, clients, rounds (in which it travelled at all), and
    bytes by direction.

    >>> rows = by_tensor({"a": {"up": {1: {"x": 5}, 2: {"x": 5}}}, "b": {"up": {1: {"x": 7}}, "down": {2: {"x": 1}}}})
    >>> [rows[0][name] for name in ("tensor", "clients", "rounds", "up", "down", "score")]
    ['x', 2, 2, 17, 1, 0]
    """
    rows: dict[str, dict[str, Any]] = {}
    for client, ways in found.items():
        for way, rounds in ways.items():
            for number, tensors in rounds.items():
                for key, size in tensors.items():
                    row = rows.setdefault(key, {"clients": set(), "rounds": set(), **dict.fromkeys(WAYS, 0)})
                    row["clients"].add(client)
                    row["rounds"].add(number)
                    row[way] += size
    return [
        {**row, "tensor": key, "clients": len(row["clients"]), "rounds": len(row["rounds"])}
        for key, row in sorted(rows.items())
    ]


def shown(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The same as text, with the sum below; directions in which nothing travelled are left out."""
    whole = list(rows)
    ways = [way for way in WAYS if any(row[way] for row in whole)]
    total = {"tensor": "all", "clients": "", "rounds": "", **{way: sum(row[way] for row in whole) for way in ways}}
    return [
        {
            "tensor": str(row["tensor"]),
            "clients": str(row["clients"]),
            "rounds": str(row["rounds"]),
            **{WAYS[way]: byte_text(row[way]) if row[way] else "-" for way in ways},
        }
        for row in (*whole, total)
    ]
