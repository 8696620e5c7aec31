"""Runs every installed method on one benchmark, each through the real command, and prints one table.

    python tools/try_methods.py --out tried -- -b flan-feddpa1 --rounds 2 --local-steps 4

What stands behind `--` goes to `pfl-platform run` of every method. A method that is refused or stops has its sentence
in the table. Runs that are finished in the folder are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_platform.cli import main as pfl
from pfl_platform.plugins import available
from pfl_platform.report.units import byte_text, score_text, time_text

COLUMNS = (
    "method",
    "Self A_last",
    "minimum",
    "loss, first and last round",
    "up",
    "down",
    "clients",
    "server, and before",
)


def tried(method: str, folder: Path, words: Sequence[str]) -> dict[str, Any] | str:
    """A method's results, or the sentence with which it ended."""
    done = folder / "results.json"
    if not done.is_file():
        said = io.StringIO()
        arguments = ["resume", str(folder)] if (folder / "run.json").is_file() else None
        arguments = arguments or ["run", "--plugin", method, "--out", str(folder), *words]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = pfl([*arguments, "--quiet"])
        if code != 0:
            return f"exit code {code}: {said.getvalue().strip().splitlines()[-1]}"
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def row(method: str, found: dict[str, Any] | str, folder: Path) -> tuple[str, ...]:
    if isinstance(found, str):
        return (method, found, *[""] * (len(COLUMNS) - 2))
    cost, shared = found["cost"], found["shared_cost"] or {}
    score = found["summary"]["self"]["last"]
    losses = [
        json.loads(file.read_text(encoding="utf-8"))["summary"]["loss"] for file in sorted(folder.glob("rounds/*.json"))
    ]
    shown = [f"{loss:.3f}" for loss in (losses[0], losses[-1]) if loss is not None]
    return (
        method,
        score_text(score["mean"]),
        score_text(score["min"]),
        ", ".join(shown),
        byte_text(cost["up_payload"]),
        byte_text(cost["down_payload"] + cost["score_payload"]),
        time_text(cost["seconds"]),
        time_text(shared.get("seconds", 0.0)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="one run folder per method in here")
    parser.add_argument("--methods", default="all", help="names, a,b; or all")
    parser.add_argument("words", nargs="*", help="what every run is given")
    order = parser.parse_args()
    names = sorted(available("method")) if order.methods == "all" else order.methods.split(",")
    rows = []
    for name in names:
        found = tried(name, order.out / name, order.words)
        rows.append(row(name, found, order.out / name))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")
    return int(any(cells[1].startswith("exit code") for cells in rows))


if __name__ == "__main__":
    raise SystemExit(main())
