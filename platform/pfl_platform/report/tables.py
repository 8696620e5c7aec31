"""Grids on a screen, with rich. What rich draws is plain text when it is not a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pfl_platform.report.grids import Column, Grid, Results, client_grid, compare_grid, excerpt
from pfl_platform.report.profiles import profile_grid

_NAME_WIDTH = 28


def results_table(results: Results) -> RenderableType:
    """The clients of one run, from the content of its `results.json`."""
    return Page(excerpt(client_grid(results), results))


def profile_table(profile: Mapping[str, Any]) -> RenderableType:
    """Where the time of a run's rounds went."""
    return Page(profile_grid(profile))


def compare_table(results: Sequence[Results]) -> RenderableType:
    """Several runs, grouped by method over seeds."""
    return Page(compare_grid(results))


@dataclass(frozen=True)
class Page:
    """A grid that fits its width: as few tables below each other as there must be, each with the key columns."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = not options.encoding.lower().startswith("utf")
        yield Text(self.grid.title, style="bold")
        for columns in pieces(self.grid, options.max_width):
            yield _table(self.grid, columns, plain)
        for note in self.grid.notes:
            yield Text(note.replace("±", "+/-") if plain else note, style="dim")


def pieces(grid: Grid, width: int) -> list[tuple[Column, ...]]:
    """The columns of each table. Scores and costs share one only when everything fits; no column is ever cut."""
    key, scores, costs = grid.of("key"), grid.of("scores"), grid.of("costs")
    if _width((*key, *scores, *costs)) <= width:
        return [(*key, *scores, *costs)]
    found: list[tuple[Column, ...]] = []
    for group in (scores, costs):
        piece: tuple[Column, ...] = ()
        for column in group:
            if piece and _width((*key, *piece, column)) > width:
                found.append((*key, *piece))
                piece = ()
            piece += (column,)
        found.append((*key, *piece))
    return found


def _width(columns: Sequence[Column]) -> int:
    return 1 + sum(2 + _needed(column) for column in columns)


def _needed(column: Column) -> int:
    """Width of a column; long names may wrap, numbers may not."""
    longest = max(cell_len(cell) for cell in (*column.head, *column.cells))
    return min(longest, _NAME_WIDTH) if column.part == "key" else longest


def _table(grid: Grid, columns: Sequence[Column], plain: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        width = _needed(column)
        number = column.part != "key" or column.head[1] == "seeds"
        table.add_column(
            "\n".join(column.head),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=width if number else None,
            max_width=max(width, 2) + 2,
            vertical="bottom",
        )
    first_footer = grid.height - grid.footers
    for row in range(grid.height):
        cells = [column.cells[row].replace("±", "+/-") if plain else column.cells[row] for column in columns]
        style = "bold" if row == first_footer else None
        table.add_row(*(Text(cell) for cell in cells), style=style, end_section=row == first_footer - 1)
    return table
