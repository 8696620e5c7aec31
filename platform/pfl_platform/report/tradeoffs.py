"""What a score has cost so far: accuracy against FLOPs and against bytes, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_platform.evaluation.matrix import mean

if TYPE_CHECKING:
    from pfl_platform.store.run_folder import RunFolder

Point = tuple[float, float]


def tradeoff(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None = None
) -> dict[str, list[Point]]:
    """ "flops" and "bytes" -> [(cost so far, Self), ...], means over clients. before: the cost of preparation.

    FLOPs are those that were counted, of training and statistics; bytes the payload, up and down, that for evaluation
    included. What is booked on no single client (preparation, a server that trains) is shared among all of them.
    """
    clients = results["clients"]
    points: dict[str, list[Point]] = {"flops": [], "bytes": []}
    early = before or {}
    spent = {"flops": early.get("flops", 0.0), "bytes": early.get("up_payload", 0) + early.get("down_payload", 0)}
    for record in records:
        costs = [record["clients"][client]["cost"] for client in clients if client in record["clients"]]
        shared = record.get("shared_cost") or {}
        spent["flops"] += sum(cost["flops"] for cost in costs) + shared.get("flops", 0.0)
        spent["bytes"] += sum(
            cost[f"{way}_payload"] for cost in costs for way in ("up", "down", "score") if f"{way}_payload" in cost
        )
        number = int(record["round_index"]) + 1
        score = mean(dict(map(tuple, entry["curve"]["self"])).get(number) for entry in clients.values())
        if score is not None:
            for name, values in points.items():
                values.append((spent[name] / len(clients), score))
    return points


def of_run(results: Mapping[str, Any], run: RunFolder) -> dict[str, list[Point]]:
    """`tradeoff` of a finished run."""
    return tradeoff(results, run.rounds(), (run.read_prepare() or {}).get("cost"))


def draw(found: Mapping[str, Mapping[str, Sequence[Point]]], folder: Path) -> list[Path]:
    """`accuracy-flops.png` and `accuracy-bytes.png`; found: label -> what `tradeoff` gives."""
    from pfl_platform.report.pictures import scatter

    files = []
    for name, axis in (("flops", "FLOPs per client so far"), ("bytes", "bytes per client so far, up and down")):
        file = folder / f"accuracy-{name}.png"
        scatter({label: parts[name] for label, parts in found.items()}, axis, "Self, mean over clients", file)
        files.append(file)
    return files
