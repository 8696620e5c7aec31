"""What a run keeps of a round, as JSON, and what it reads back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pfl_platform.federation.components import Base, Federation, ServerState
from pfl_platform.federation.rounds import Progress, RoundResult
from pfl_platform.federation.tasks import Outcome


def progress_of(record: Mapping[str, Any]) -> Progress:
    """Where a federation stood after the round of a record."""
    server = ServerState(record["server"]["tensors"], record["server"]["meta"])
    bases = {name: Base(**base) for name, base in record.get("bases", {}).items()}
    return Progress(record["states"], server, record.get("heads", {}), record.get("evaluated", {}), bases)


def round_record(result: RoundResult) -> dict[str, Any]:
    """What `rounds/NNNN.json` holds: all that the next round, the results and a reader need."""
    server = result.progress.server
    return {
        "states": dict(result.progress.states),
        "server": {"tensors": dict(server.tensors), "meta": dict(server.meta)},
        "heads": dict(result.progress.heads),
        "evaluated": dict(result.progress.evaluated),
        "bases": {name: asdict(base) for name, base in result.progress.bases.items()},
        "clients": {name: _client_record(outcome) for name, outcome in result.outcomes.items()},
        "summary": {**summary(result.outcomes), "report": dict(server.report)},
    }


def summary(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Means over the round's clients, for observers."""
    if not outcomes:
        return {}
    trained = [item for item in outcomes.values() if item.cost.steps]
    losses = [value for item in trained for name, value in item.metrics.items() if name.startswith("loss/")]
    return {
        "loss": sum(losses) / len(losses) if losses else None,
        "seconds": sum(item.cost.seconds for item in outcomes.values()),
        "up_wire": sum(item.cost.up_wire for item in outcomes.values()),
        "down_wire": sum(item.cost.down_wire for item in outcomes.values()),
    }


def _client_record(outcome: Outcome) -> dict[str, Any]:
    return {
        "metrics": dict(outcome.metrics),
        "scores": dict(outcome.scores),
        "predictions": outcome.predictions,
        "cost": asdict(outcome.cost),
        "messages": dict(outcome.messages),
        "num_examples": outcome.num_examples,
    }


def predictions(
    fed: Federation, record: Mapping[str, Any], later: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of `predictions.jsonl`: client, cell, sample, text, score of the last round.

    later: client id -> cell key -> {"predictions": address, ...}, of cells that were scored afterwards; theirs replace
    those of the round.
    """

    def rows(address: str | None) -> Iterator[Mapping[str, Any]]:
        if address:
            yield from map(json.loads, fed.store.get_text(address).splitlines())

    for client in fed.clients:
        name = client.client_id
        newer = (later or {}).get(name, {})
        for row in rows(record["clients"].get(name, {}).get("predictions")):
            if row["cell"] not in newer:
                yield {"client": name, **row}
        for entry in newer.values():
            for row in rows(entry["predictions"]):
                yield {"client": name, **row}
