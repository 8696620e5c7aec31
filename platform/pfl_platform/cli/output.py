"""Where the commands print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Form: TypeAlias = Literal["screen", "json", "markdown"]
"""How results are printed."""


def form_of(json: bool, markdown: bool) -> Form:
    """The form that two switches ask for."""
    if json and markdown:
        raise UserError("Results are printed as JSON or as Markdown; give one of --json and --markdown.")
    return "json" if json else "markdown" if markdown else "screen"


def complain(sentence: str) -> None:
    """One line on the standard error stream."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)


def note(sentence: str) -> None:
    """Where a long command stands: one line on the standard error stream."""
    print(sentence, file=sys.stderr)


def console(width: int = 160) -> Console:
    """The screen, as wide as it is; `width` columns when it is a file or a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=width)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A plain table of text cells. Long cells wrap on a terminal; elsewhere a row is a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))
    console(width=1000).print(table)
