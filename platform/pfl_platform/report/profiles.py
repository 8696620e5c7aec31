"""Where a run's time went, round by round, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfl_platform.report.grids import Column, Grid
from pfl_platform.report.units import time_text


def read_profile(run: Path) -> dict[str, Any] | None:
    """What `results.json` says: seconds of each part, over all rounds that were profiled and by round, in the mean over
    ranks where there were several; and by rank, over all rounds. None where no round was profiled."""
    try:
        found = json.loads((run / "profile" / "rounds.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    rounds = {name: _added(ranks, len(ranks)) for name, ranks in found.items() if ranks}
    if not rounds:
        return None
    most = max(map(len, found.values()))
    ranks = {str(rank): _added([row[rank] for row in found.values() if rank < len(row)]) for rank in range(most)}
    return {"parts": _added([*rounds.values()]), "rounds": rounds, **({"ranks": ranks} if most > 1 else {})}


def _added(rows: Sequence[Mapping[str, float]], by: int = 1) -> dict[str, float]:
    return {part: sum(row.get(part, 0.0) for row in rows) / by for part in {key: None for row in rows for key in row}}


def profile_grid(profile: Mapping[str, Any]) -> Grid:
    """A row per round, a row per rank of a launch, a column per part that took time; the last row is all rounds. Rounds
    are means over ranks."""
    rounds, whole, ranks = profile["rounds"], profile["parts"], profile.get("ranks", {})
    rows = [*rounds.values(), *ranks.values(), whole]
    shown = [part for part, seconds in whole.items() if seconds > 0]
    totals = tuple(time_text(sum(row.values())) for row in rows)

    def cells(part: str) -> tuple[str, ...]:
        return tuple(f"{row.get(part, 0.0):.2f}" for row in rows)

    share = {part: whole[part] / max(1e-9, sum(whole.values())) for part in shown}
    columns = (
        Column("key", ("", "round"), (*rounds, *(f"rank {name}" for name in ranks), "all")),
        *(Column("costs", (f"{100 * share[part]:.0f} %", part), cells(part)) for part in shown),
        Column("costs", ("", "in all"), totals),
    )
    notes = ["A trace of the first steps: folder `profile`."]
    if ranks:
        notes.append("Rounds are means over the ranks, rows of ranks are over all rounds; who has less to do waits.")
    return Grid("Where the time went, in seconds", columns, 1, tuple(notes))
