"""`adapt RUN...`: how fast unseen tasks are learned from what runs ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.report.units import score_text

COLUMNS = 6


def adapt(runs: Sequence[Path], out: Path, steps: int, every: int, items: int, as_json: bool, quiet: bool) -> None:
    """Trains, draws `adaptation.png` beside `adaptation.json` in `out`, and prints."""
    from pfl_platform.federation.adapting import FILE, Adaptation
    from pfl_platform.federation.adapting import adapt as carry_out
    from pfl_platform.report.pictures import curve_grid

    say = (lambda sentence: None) if quiet or as_json else note
    found = carry_out(runs, out, Adaptation(steps, every, items), say=say)
    picture = out / "adaptation.png"
    starts = found["starts"]
    panels = {"mean": {name: start["mean"] for name, start in starts.items()}}
    for task in next(iter(starts.values()))["tasks"]:
        panels[task] = {name: start["tasks"][task] for name, start in starts.items()}
    curve_grid(panels, found["steps"], picture)
    if as_json:
        print_json(found)
        return
    shown = columns(len(found["steps"]))
    print_rows(rows(found, shown), ["start", *(f"step {found['steps'][k]}" for k in shown), "mean of all"])
    console().print(f"\nMeans over unseen tasks and backbones. In {out / FILE}; by task in {picture}.", soft_wrap=True)


def columns(count: int) -> list[int]:
    """At most `COLUMNS` places of `count`, evenly spread, with the first and the last.

    >>> columns(21), columns(3)
    ([0, 4, 8, 12, 16, 20], [0, 1, 2])
    """
    wanted = min(COLUMNS, count)
    return sorted({round(k * (count - 1) / max(1, wanted - 1)) for k in range(wanted)})


def rows(found: Mapping[str, Any], shown: Sequence[int]) -> list[dict[str, str]]:
    return [
        {
            "start": name,
            **{f"step {found['steps'][k]}": score_text(start["mean"][k]) for k in shown},
            "mean of all": score_text(sum(start["mean"]) / len(start["mean"])),
        }
        for name, start in found["starts"].items()
    ]
