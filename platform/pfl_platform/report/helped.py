"""Who helped whom: the weight of every client in what every client got back, round by round, and what it gained.

An aggregator that weighs clients says so in its report: `ServerState.report["weights"]`, client -> contributor ->
weight. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pfl_platform.errors import UserError
from pfl_platform.report.grids import Column, Grid
from pfl_platform.report.units import score_text

Matrix: TypeAlias = list[list[float | None]]
"""Row: who got it. Column: whose it was. None where the row's client got nothing in that round."""


def matrix_of(weights: Mapping[str, Mapping[str, float]], clients: Sequence[str]) -> Matrix:
    """The table of a round over all clients; whoever is not named in a row weighed nothing.

    >>> matrix_of({"a": {"a": 0.75, "b": 0.25}}, ["a", "b"])
    [[0.75, 0.25], [None, None]]
    """
    return [[float(weights[row].get(column, 0.0)) if row in weights else None for column in clients] for row in clients]


def mean_of(matrices: Sequence[Matrix]) -> Matrix:
    """Entry by entry, over the rounds in which it is there.

    >>> mean_of([[[1.0, None]], [[0.5, None]]])
    [[0.75, None]]
    """
    found: Matrix = []
    for rows in zip(*matrices, strict=True):
        columns = [[value for value in cells if value is not None] for cells in zip(*rows, strict=True)]
        found.append([sum(cells) / len(cells) if cells else None for cells in columns])
    return found


def helped(
    results: Mapping[str, Any], records: Sequence[Mapping[str, Any]], alone: Mapping[str, Any] | None
) -> dict[str, Any]:
    """From a run's results and the records of its rounds. alone: the results of a run that shared nothing.

        clients, rounds   number (from 1) -> matrix; mean: over rounds
        gain              client -> Self A_last minus that of `alone`; null where it is not known

    Raises `UserError` when no round has weights.
    """
    clients = list(results["clients"])
    rounds = {
        int(record["round_index"]) + 1: matrix_of(weights, clients)
        for record in records
        if isinstance(weights := record["summary"].get("report", {}).get("weights"), Mapping)
    }
    if not rounds:
        raise UserError(
            f"The server of '{results['method']}' does not say how much each client weighed in what the others got."
        )
    gain: dict[str, float | None] = dict.fromkeys(clients)
    for client in clients:
        mine = results["clients"][client]["self"]["last"]
        before = (alone or {}).get("clients", {}).get(client, {}).get("self", {}).get("last")
        if mine is not None and before is not None:
            gain[client] = mine - before
    return {"clients": clients, "rounds": rounds, "mean": mean_of(list(rounds.values())), "gain": gain}


def without_sharing(results: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of several runs' results, those of one on the same benchmark, with the same seed, in which nothing was sent."""
    return next(
        (
            other
            for other in others
            if (other["benchmark"], other["seed"]) == (results["benchmark"], results["seed"])
            and not other["cost"]["up_payload"]
            and list(other["clients"]) == list(results["clients"])
        ),
        None,
    )


def helped_grid(found: Mapping[str, Any], title: str, matrix: Matrix) -> Grid:
    """One matrix as a table, with each client's gain."""
    clients = found["clients"]
    columns = [Column("key", ("", "got by"), tuple(clients))]
    for index, name in enumerate(clients):
        cells = tuple("-" if row[index] is None else f"{row[index]:.3f}" for row in matrix)
        columns.append(Column("scores", ("from", name), cells))
    gains = [found["gain"][client] for client in clients]
    if any(value is not None for value in gains):
        columns.append(Column("scores", ("", "gain"), tuple(score_text(value, sign=True) for value in gains)))
    note = "Rows: who got it; columns: whose adapter it was. Gain: Self A_last over the run that shared nothing."
    return Grid(title, tuple(columns), 0, (note,))


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Heat maps of the first round that has weights, the last, and the mean of all."""
    from pfl_platform.report.pictures import heat_maps

    numbers = list(found["rounds"])
    chosen = {f"round {number}": found["rounds"][number] for number in dict.fromkeys((numbers[0], numbers[-1]))}
    if len(numbers) > 1:
        chosen["mean over rounds"] = found["mean"]
    heat_maps(chosen, found["clients"], found["clients"], file)
