"""Tables and figures of papers, as `reproduce` knows them: recipes that cite one.

A recipe that has a `citation` of its own is a table. It is called PAPER/TABLE after its file, `PAPER-TABLE.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pfl_platform.errors import UserError, nearest
from pfl_platform.recipe_files import recipes
from pfl_platform.settings import read


@dataclass(frozen=True)
class Table:
    """One table, or figure. note: what a reader must know, such as where the paper contradicts itself."""

    paper: str
    name: str
    file: Path
    summary: str
    citation: str
    note: str

    @property
    def title(self) -> str:
        return f"{self.paper}/{self.name}"


def tables() -> dict[str, Table]:
    """All installed tables by title, sorted."""
    found = {}
    for stem, files in recipes().items():
        written = read(files[0])
        paper, dash, name = stem.partition("-")
        if dash and written.get("citation"):
            said = {key: " ".join(str(written.get(key, "")).split()) for key in ("summary", "citation", "note")}
            table = Table(paper, name, files[0], **said)
            found[table.title] = table
    return dict(sorted(found.items()))


def find_table(title: str) -> Table:
    """The table of this title; also by its recipe's name."""
    known = tables()
    wanted = title if "/" in title else title.replace("-", "/", 1)
    if wanted not in known:
        raise UserError(
            f"There is no table '{title}'; `pfl-platform reproduce` lists them." + nearest(wanted, list(known))
        )
    return known[wanted]
