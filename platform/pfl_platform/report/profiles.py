"""Where a run's time went, round by round, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_platform.report.grids import Column, Grid
from pfl_platform.report.units import time_text


def read_profile(run: Path) -> dict[str, Any] | None:
    """What `results.json` says: seconds of each part, over all rounds that were profiled and by round; None where none
    was."""
    try:
        rounds = json.loads((run / "profile" / "rounds.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = {part: sum(found.get(part, 0.0) for found in rounds.values()) for part in next(iter(rounds.values()), {})}
    return {"parts": parts, "rounds": rounds} if parts else None


def profile_grid(profile: Mapping[str, Any]) -> Grid:
    """A row per round, a column per part that took time; the last row is all rounds."""
    rounds, whole = profile["rounds"], profile["parts"]
    rows = [*rounds.values(), whole]
    shown = [part for part, seconds in whole.items() if seconds > 0]
    totals = tuple(time_text(sum(row.values())) for row in rows)

    def cells(part: str) -> tuple[str, ...]:
        return tuple(f"{row.get(part, 0.0):.2f}" for row in rows)

    share = {part: whole[part] / max(1e-9, sum(whole.values())) for part in shown}
    columns = (
        Column("key", ("", "round"), (*rounds, "all")),
        *(Column("costs", (f"{100 * share[part]:.0f} %", part), cells(part)) for part in shown),
        Column("costs", ("", "in all"), totals),
    )
    return Grid("Where the time went, in seconds", columns, 1, ("A trace of the first steps: folder `profile`.",))
