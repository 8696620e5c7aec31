"""`data check` and `data layout`: a benchmark's files, what is there of them and where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, print_json, print_rows
from pfl_platform.data import DATA
from pfl_platform.errors import UserError
from pfl_platform.inventory import Inventory
from pfl_platform.plugins import Plugin, PluginManager, default, find
from pfl_platform.settings import assignment

ABOUT = {"published_at": "Published at", "licence": "Licence", "citation": "Paper"}


def use(folder: Path | None) -> None:
    """Takes a folder as the one that holds data sets, for this process."""
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"The data folder {folder} does not exist or is no folder.")
        os.environ[DATA] = str(folder.resolve())


def layout(name: str, as_json: bool) -> None:
    """Prints the tree of files that a benchmark expects, and what its card says of them."""
    plugin = find("benchmark", name)
    about = plugin.about
    tree: Mapping[str, str] = about.get("layout") or {}
    said = {title: " ".join(str(about[key]).split()) for key, title in ABOUT.items() if key in about}
    folders = list(about.get("folders") or [])
    if as_json:
        print_json({"name": name, "folders": folders, "layout": dict(tree), **said})
        return
    screen = console(width=1000)
    if not tree:
        screen.print(f"{name}: {_readme(plugin)}", markup=False, highlight=False)
    else:
        screen.print(f"${DATA}/{folders[0] if folders else name}/", markup=False, highlight=False, style="bold")
        print_rows([{"": f"  {path}", " ": what} for path, what in tree.items()], ["", " "])
        if folders[1:]:
            others = ", ".join(f"${DATA}/{folder}" for folder in folders[1:])
            screen.print(f"Also looked for in {others}.", markup=False, highlight=False)
    for title, what in said.items():
        screen.print(f"{title}: {what}", markup=False, highlight=False)


def _readme(plugin: Plugin) -> str:
    readme = plugin.folder / "README.md" if plugin.folder is not None else None
    there = readme is not None and readme.is_file()
    return "no files are listed" + (f"; see {readme}." if there else ".")


def check(name: str, settings: Sequence[str], as_json: bool) -> bool:
    """Prints what is there of a benchmark's files. Whether everything is."""
    options: dict[str, Any] = dict(assignment(text) for text in settings)
    if os.sep in name or Path(name).is_dir():
        name, options = default("benchmark-from-path").name, {"path": name, **options}
    found = PluginManager().check_data(name, options)
    about = find("benchmark", name).about
    if found is None:
        raise UserError(f"The benchmark '{name}' says nothing of files that could be checked.")
    if as_json:
        print_json(
            {
                "name": name,
                "root": str(found.root),
                "whole": found.whole,
                "files": [vars(file) for file in found.files],
                "notes": list(found.notes),
                "faults": list(found.faults),
                "licence": about.get("licence", ""),
            }
        )
        return found.whole
    _print(name, found, str(about.get("licence", "")))
    return found.whole


def _print(name: str, found: Inventory, licence: str) -> None:
    rows = [
        {
            "file": file.path,
            "state": file.state,
            "samples": "" if file.samples is None else f"{file.samples:,}",
            "official": "" if file.official is None else f"{file.official:,}",
            " ": file.said,
        }
        for file in found.files
    ]
    screen = console(width=1000)
    screen.print(f"{name}: {found.root}", style="bold", markup=False, highlight=False)
    print_rows(rows, ["file", "state", "samples", "official", " "])
    counts = {state: sum(file.state == state for file in found.files) for state in ("there", "missing", "broken")}
    total = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    screen.print(f"{len(found.files)} expected: {total}.", markup=False, highlight=False)
    for note in (*found.faults, *found.notes):
        screen.print(note, markup=False, highlight=False)
    if licence:
        screen.print(f"Licence: {licence}", markup=False, highlight=False)
