"""Grids as GitHub tables, for pages."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_platform.report.grids import Grid, Results, client_grid, compare_grid
from pfl_platform.report.profiles import profile_grid


def results_markdown(results: Results) -> str:
    """The clients of one run, from the content of its `results.json`; ends with a newline."""
    profile = results.get("profile")
    more = "" if profile is None else "\n" + to_markdown(profile_grid(profile))
    return to_markdown(client_grid(results)) + more


def compare_markdown(results: Sequence[Results]) -> str:
    """Several runs, grouped by method over seeds; ends with a newline."""
    return to_markdown(compare_grid(results))


def to_markdown(grid: Grid) -> str:
    """Title, table, notes. Heads of two lines become one (`Self A_last`)."""
    heads = [" ".join(filter(None, column.head)) for column in grid.columns]
    marks = ["---" if column.part == "key" else "---:" for column in grid.columns]
    first_footer = grid.height - grid.footers
    rows = [
        [
            f"**{text}**" if row == first_footer and text else text
            for text in (column.cells[row] for column in grid.columns)
        ]
        for row in range(grid.height)
    ]
    lines = [_line(heads), _line(marks), *(_line([_escaped(cell) for cell in row]) for row in rows)]
    return "\n".join([f"**{_escaped(grid.title)}**", "", *lines, "", *_notes(grid)]) + "\n"


def _notes(grid: Grid) -> list[str]:
    return [part for note in grid.notes for part in (_escaped(note), "")][:-1]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
