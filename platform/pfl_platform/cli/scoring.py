"""`score RUN ADAPTER...`: saved adapters on the tasks of a run's clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast, get_args

from pfl_platform.cli.output import Form, console, note, print_json, print_rows
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.surfaces import Split
from pfl_platform.report.units import score_text


def score(run: Path, adapters: Sequence[Path], split: str | None, form: Form, quiet: bool) -> None:
    """Scores the adapters and prints a row per client, with the run's own models beside them."""
    if split is not None and split not in get_args(Split):
        raise UserError(f"No split is called '{split}'.{nearest(split, get_args(Split))}")
    from pfl_platform.federation.scoring import score as scores

    say = (lambda _: None) if quiet or form == "json" else note
    found = scores(run, adapters, split=cast("Split | None", split), say=say)
    if form == "json":
        print_json(found)
        return
    rows, columns = table(found)
    if form == "markdown":
        lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
        console(width=1000).print("\n".join("| " + " | ".join(line) + " |" for line in lines), markup=False)
        return
    print_rows(rows, columns)
    console().print(f"\nSelf on {found['split']} samples; own: what the run's clients ended with.")


def table(found: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of text, and the columns."""
    columns: dict[str, dict[str, float | None]] = {"own": found["run"]}
    for name, entry in found["adapters"].items():
        columns[name] = {client: row["self"] for client, row in entry["clients"].items()}
    rows = [
        {"client": client, **{name: score_text(values[client]) for name, values in columns.items()}}
        for client in found["run"]
    ]
    for label, fold in (("mean", fmean), ("minimum", min)):
        known = {name: [value for value in values.values() if value is not None] for name, values in columns.items()}
        rows.append({"client": label, **{name: score_text(fold(v) if v else None) for name, v in known.items()}})
    return rows, ["client", *columns]
