"""`line RUN`: personal models made of two, at every weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.report.units import score_text


def line(run: Path, points: int, split: Any, as_json: bool, quiet: bool) -> None:
    """Measures, draws `line.png` beside `line.json` in the run folder, and prints."""
    from pfl_platform.federation.line import FILE, walk
    from pfl_platform.report.pictures import lines

    found = walk(run, points=points, split=split, say=(lambda _: None) if quiet or as_json else note)
    picture = run / "line.png"
    lines(found, picture)
    if as_json:
        print_json(found)
        return
    print_rows(client_rows(found), ["client", "weight", "best", "barrier", *found["ends"], "own weight", "best weight"])
    console().print()
    print_rows(round_rows(found), ["round", "mean weight", "score", "MB per client"])
    chosen = f"of {found['points']} weights on {found['split']} samples"
    console().print(f"Weight: share of '{found['ends'][1]}'. Best: {chosen}.")
    console().print(f"Scores are on the test samples. The lines are in {run / FILE} and {picture}.")


def client_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    first, second = found["ends"]
    return [
        {
            "client": name,
            "weight": f"{entry['weight']:.3f}",
            "best": f"{entry['best']:.2f}",
            "barrier": f"{entry['barrier']:.4f}",
            first: score_text(entry["test"]["first"]),
            second: score_text(entry["test"]["second"]),
            "own weight": score_text(entry["test"]["own"]),
            "best weight": score_text(entry["test"]["best"]),
        }
        for name, entry in found["clients"].items()
    ]


def round_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "round": str(number),
            "mean weight": f"{row['weight']:.3f}",
            "score": score_text(row["score"]),
            "MB per client": f"{row['megabytes']:.3f}",
        }
        for number, row in found["rounds"].items()
    ]
