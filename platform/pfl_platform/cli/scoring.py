"""`score RUN ADAPTER...`: saved adapters on the tasks of a run's clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast, get_args

from pfl_platform.cli.output import Form, console, note, print_json
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.surfaces import Split
from pfl_platform.report.grids import Column, Grid
from pfl_platform.report.units import score_text


def score(run: Path, adapters: Sequence[Path], split: str | None, form: Form, quiet: bool) -> None:
    """Scores the adapters and prints a row per client, with the run's own models beside them."""
    if split is not None and split not in get_args(Split):
        raise UserError(f"No split is called '{split}'.{nearest(split, get_args(Split))}")
    from pfl_platform.federation.scoring import score as scores
    from pfl_platform.report.markdown import to_markdown
    from pfl_platform.report.tables import Page

    say = (lambda _: None) if quiet or form == "json" else note
    found = scores(run, adapters, split=cast("Split | None", split), say=say)
    if form == "json":
        print_json(found)
        return
    shown = grid(found)
    if form == "markdown":
        print(to_markdown(shown), end="")
    else:
        console().print(Page(shown))


def grid(found: Mapping[str, Any]) -> Grid:
    """A row per client, then the mean and the lowest; a column for the run's own models and for each adapter."""
    sides: dict[str, dict[str, float | None]] = {"own": found["run"]}
    for name, entry in found["adapters"].items():
        sides[name] = {client: row["self"] for client, row in entry["clients"].items()}
    columns = [Column("key", ("", "client"), (*found["run"], "mean", "minimum"))]
    for name, values in sides.items():
        known = [value for value in values.values() if value is not None]
        cells = [
            *(values[client] for client in found["run"]),
            *(fold(known) if known else None for fold in (fmean, min)),
        ]
        columns.append(Column("scores", ("", name), tuple(map(score_text, cells))))
    note = f"Self on {found['split']} samples; own: what the run's clients ended with."
    return Grid("Adapters on the clients' own tasks", tuple(columns), 2, (note,))
