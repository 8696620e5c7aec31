"""Recipes as files: where they are found, what is written in them, and the rows of those that are tables.

See `pfl_platform.recipes` for what a recipe means.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pfl_platform.errors import UserError, nearest
from pfl_platform.plugins import Plugin, available, default, find
from pfl_platform.settings import Settings, lay_over, long_form, nested, read
from pfl_platform.tuning import label

ABOUT = ("summary", "citation", "note")
"""Keys of a `default.yaml` or a recipe that describe and do not configure."""
TINY = "tiny"
"""The key under which a recipe, or a benchmark's card, says how it is run in small; see `miniature`."""


def recipes() -> dict[str, list[Path]]:
    """All installed recipes by name: `recipes/*.yaml` beside methods and benchmarks."""
    plugins = [*available("method").values(), *available("benchmark").values()]
    folders = sorted({folder for plugin in plugins if (folder := plugin.folder) is not None})
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for file in sorted((folder / "recipes").glob("*.yaml")):
            found.setdefault(file.stem, []).append(file)
    return found


def find_recipe(name: str, near: Sequence[Plugin] = ()) -> Path:
    """The file of a recipe. Of several with the same name, the one that lies with the first plugin of `near` that
    has it."""
    if Path(name).suffix in {".yaml", ".yml"} or os.sep in name:
        if not Path(name).is_file():
            raise UserError(f"The recipe {name} does not exist.")
        return Path(name)
    known = recipes()
    if name not in known:
        raise UserError(f"There is no recipe called '{name}'." + nearest(name, known))
    for plugin in near:
        for file in known[name]:
            if file.parent.parent == plugin.folder:
                return file
    if len(known[name]) > 1:
        files = " and ".join(str(file) for file in known[name])
        raise UserError(
            f"Several recipes are called '{name}': {files}; name a method or a benchmark, or give the path."
        )
    return known[name][0]


def benchmark_setting(value: str, base: Path) -> Settings:
    """`value` as the setting `benchmark`: a name, or a folder (relative to `base`) for the plugin that reads
    folders."""
    if not value:
        raise UserError("The name of the benchmark is empty.")
    looks_like_path = os.sep in value or value in {".", ".."} or value.startswith("~")
    if not looks_like_path and (value in available("benchmark") or not (base / value).is_dir()):
        return {"name": find("benchmark", value).name}
    folder = base / Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(f"The benchmark folder {folder} does not exist.")
    return {"name": default("benchmark-from-path").name, "options": {"path": str(folder.resolve())}}


def written_in(file: Path, reading: tuple[Path, ...] = ()) -> Settings:
    """The settings of a recipe's file, laid over those of the recipe that it is `like`, with `rows` and `grid`."""
    if file in reading:
        raise UserError(f"The recipe {file} is like itself, by way of {', '.join(path.name for path in reading)}.")
    own = configuring(read(file))
    if isinstance(own.get("benchmark"), str):
        own["benchmark"] = benchmark_setting(own["benchmark"], file.parent)
    for table in ("rows", "grid"):
        if not isinstance(own.get(table, {}), Mapping):
            raise UserError(f"The recipe {file} must hold {table} by name.")
    own.pop("like", None)
    if (first := like(file)) is None:
        return own
    return lay_over(long_form(written_in(first, (*reading, file))), long_form(own))


def rows_of(written: Mapping[str, Any]) -> dict[str, Settings]:
    """Label -> settings of every row, multiplied by the grid."""
    found: dict[str, Settings] = {}
    grid = {key: list(values) for key, values in (written.get("grid") or {}).items()}
    for name, settings in (written.get("rows") or {}).items():
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            title = ", ".join([str(name), *([label(chosen)] if chosen else [])])
            row = long_form(configuring(settings or {}))
            for key, value in chosen.items():
                row = lay_over(row, nested(key, value))
            found[title] = {"label": title, **row}
    return found


def in_row(file: Path, row: str | None) -> Settings:
    """What a recipe says of one row; of all, where it is no table."""
    written = written_in(file)
    rows = rows_of(written)
    common = {key: value for key, value in written.items() if key not in ("rows", "grid")}
    if row is None and rows:
        raise UserError(f"The recipe {file.stem} is a table of {len(rows)} rows; name one with --row.")
    if row is None:
        return common
    if row not in rows:
        raise UserError(f"The recipe {file.stem} has no row '{row}'." + nearest(row, rows))
    return lay_over(long_form(common), rows[row])


def configuring(settings: Settings) -> Settings:
    """What of a recipe is settings of a run."""
    return {key: value for key, value in settings.items() if key not in (*ABOUT, TINY)}


def like(file: Path) -> Path | None:
    """The recipe that a recipe starts from."""
    if (name := read(file).get("like")) is None:
        return None
    near = file.parent / f"{name}.yaml"
    return near if near.is_file() else find_recipe(str(name))
