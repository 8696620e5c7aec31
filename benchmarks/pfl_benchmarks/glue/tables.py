"""Tab-separated files as GLUE publishes them: no quoting, so a quotation mark is a character like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfl_platform.errors import UserError


@dataclass(frozen=True, slots=True)
class Line:
    """One row: the wanted fields in the order asked for, and where the row stands (`file, line n`)."""

    number: int
    fields: tuple[str, ...]
    where: str


def read_table(
    path: Path, columns: Sequence[str], positions: Sequence[int] | None = None, *, skip_broken: bool = False
) -> Iterator[Line]:
    """The rows of a file, the wanted columns only.

    columns: names in the header. positions: for a file without a header, where they stand, counted from 0; a row then
    has as many fields as the first row. A row of another length stops the reading with its line, or is left out.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:  # other line ends may stand inside a sentence
            width = 0
            for number, text in enumerate(file, start=1):
                fields = text.rstrip("\r\n").split("\t")
                if number == 1:
                    width = len(fields)
                    if positions is None:
                        positions = _positions(path, fields, columns)
                        continue
                if len(fields) != width or max(positions or (0,)) >= width:
                    if skip_broken:
                        continue
                    wanted = max(width, max(positions or (0,)) + 1)
                    raise UserError(
                        f"{path}, line {number}: {len(fields)} fields where there should be {wanted}; "
                        "mend the row, or set the option skip_broken to true."
                    )
                chosen = tuple(fields[place].strip() for place in positions or ())
                yield Line(number, chosen, f"{path}, line {number}")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _positions(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    missing = next((name for name in columns if name not in header), None)
    if missing is not None:
        shown = ", ".join(f"'{name}'" for name in header[:12])
        raise UserError(f"{path}, line 1: there is no column '{missing}'; the columns are {shown}.")
    return [list(header).index(name) for name in columns]
