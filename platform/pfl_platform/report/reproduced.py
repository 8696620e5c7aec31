"""A paper's numbers beside ours, and how far apart they are in units of our seeds' deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfl_platform.evaluation.comparison import over_runs
from pfl_platform.report.grids import Column, Grid
from pfl_platform.report.units import score_text, spread_text

MEAN = "mean"


@dataclass(frozen=True)
class Compared:
    """One row: Self A_last, mean and standard deviation over seeds. what: `mean`, or the client or task it is of."""

    row: str
    what: str
    seeds: int
    ours: float | None
    deviation: float | None
    theirs: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs

    @property
    def in_deviations(self) -> float | None:
        """The difference over the deviation of our seeds; None where there is no second seed, or no deviation."""
        return None if self.difference is None or not self.deviation else self.difference / self.deviation

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference, "in_deviations": self.in_deviations}


def compared(results: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """A line for each row of a table, and under it one for each published part of it. results: of all runs, those of a
    row with the same label.

    >>> def run(seed, score):
    ...     return {"seed": seed, "config": {"label": "x", "published": {"mean": 60.0, "t": 50.0}},
    ...         "summary": {"self": {"last": {"mean": score}}},
    ...         "clients": {"c": {"self": {"last": score}, "tasks": {"c:t": score}}}}
    >>> first, part = compared([run(0, 50.0), run(1, 54.0)])
    >>> first.ours, round(first.deviation, 3), first.difference, round(first.in_deviations, 3), part.what
    (52.0, 2.828, -8.0, -2.828, 't')
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["config"].get("label") or result["method"], []).append(result)
    found = []
    for row, members in rows.items():
        published: Mapping[str, float] = members[0]["config"].get("published") or {}
        for what in (MEAN, *(key for key in published if key != MEAN)):
            ours = over_runs([_score(member, what) for member in members])
            theirs = published.get(what)
            found.append(Compared(row, what, len(members), ours["mean"], ours["std"], theirs))
    return found


def _score(result: Mapping[str, Any], what: str) -> float | None:
    """Self A_last of a run: the mean over clients, or of one client, or of the clients that have one task."""
    if what == MEAN:
        value: float | None = result["summary"]["self"]["last"]["mean"]
        return value
    if what in result["clients"]:
        own: float | None = result["clients"][what]["self"]["last"]
        return own
    scores = [client["tasks"].get(f"{name}:{what}") for name, client in result["clients"].items()]
    return over_runs(scores)["mean"] if scores else None


def grid(rows: Sequence[Compared], title: str, notes: Sequence[str]) -> Grid:
    """The table."""
    parts = any(row.what != MEAN for row in rows)
    columns = [Column("key", ("", "row"), tuple(row.row for row in rows))]
    if parts:
        columns.append(Column("key", ("", "of"), tuple(row.what for row in rows)))
    columns += [
        Column("key", ("", "seeds"), tuple(str(row.seeds) for row in rows)),
        Column("scores", ("", "ours"), tuple(spread_text(row.ours, row.deviation) for row in rows)),
        Column("scores", ("", "theirs"), tuple(score_text(row.theirs) for row in rows)),
        Column("scores", ("", "difference"), tuple(score_text(row.difference, sign=True) for row in rows)),
        Column("scores", ("in seeds'", "deviations"), tuple(score_text(row.in_deviations, sign=True) for row in rows)),
    ]
    return Grid(title, tuple(columns), 0, tuple(notes))


def draw(rows: Sequence[Compared], file: Path) -> None:
    """Bars of the means, ours with its deviation."""
    from pfl_platform.report.pictures import bars

    means = [row for row in rows if row.what == MEAN]
    series: dict[str, list[tuple[float | None, float | None]]] = {"ours": [(row.ours, row.deviation) for row in means]}
    if any(row.theirs is not None for row in means):
        series["theirs"] = [(row.theirs, None) for row in means]
    bars(series, [row.row for row in means], "Self A_last, mean over clients", file)
