"""A recipe in small: the same rows on tiny backbones and little data, so that every way in them can be walked.

How small is said in one of three places:

- by a recipe of its own: the one called `<name>-small` beside it, or the one that the recipe's key `tiny` names;
- by the section `tiny` of the benchmark's card, for all recipes on that benchmark;
- by the section `tiny` of the recipe (or of the one that it is `like`), laid over the card's.

A section holds settings that are laid over every row; `rows`, what is laid over single rows after that; and `divide`,
whole numbers by which numbers of the row are divided, so that rows keep their proportions:

    tiny:
      divide: {rounds: 10, local_steps: 25, adapter.r: 16}
      training: {lr: 2.0e-3}
      rows: {Local: {rounds: 3}}

Each backbone that a row names gives way to the `stand_in` of its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfl_platform.errors import UserError
from pfl_platform.plugins import available, default, unadorned
from pfl_platform.recipe_files import TINY, find_recipe, in_row, like, rows_of, written_in
from pfl_platform.settings import COMPONENTS, Settings, lay_over, leaves, long_form, nested, read

DIVIDE = "divide"
SMALL = "-small"


def rows_in_miniature(file: Path) -> list[str]:
    """The labels of the rows of a recipe's miniature."""
    small = small_recipe(file)
    return list(rows_of(written_in(small or file)))


def row_in_miniature(file: Path, row: str | None) -> Settings:
    """What a recipe says of one row in small."""
    small = small_recipe(file)
    if small is not None:
        return in_row(small, row)
    written = in_row(file, row)
    name = (written.get("benchmark") or {}).get("name") or default("benchmark").name
    card = available("benchmark")[name].about.get(TINY) if name in available("benchmark") else None
    said = _section(file)
    if card is None and said is None:
        raise UserError(
            f"The recipe {file.stem} has no miniature: neither it nor the benchmark '{name}' has a section 'tiny'."
        )
    for section in (card or {}, said or {}):
        written = shrunk(written, section, file)
    return lay_over(written, long_form(((said or {}).get("rows") or {}).get(row) or {}))


def small_recipe(file: Path) -> Path | None:
    """The recipe that is another's miniature, where one is."""
    said = read(file).get(TINY)
    if isinstance(said, str):
        near = file.parent / f"{said}.yaml"
        return near if near.is_file() else find_recipe(said)
    beside = file.with_name(f"{file.stem}{SMALL}.yaml")
    return beside if said is None and beside.is_file() else None


def _section(file: Path) -> Settings | None:
    """The section `tiny` of a recipe, laid over that of the recipe that it is like."""
    said, first = read(file).get(TINY), like(file)
    before = _section(first) if first is not None else None
    if said is not None and not isinstance(said, Mapping | str):
        raise UserError(f"The section 'tiny' of the recipe {file} must hold settings by name, or be a recipe's name.")
    if not isinstance(said, Mapping):
        return before
    return lay_over(before or {}, said)


def shrunk(written: Settings, section: Mapping[str, Any], file: Path) -> Settings:
    """Settings of a row with a section laid over them."""
    result = long_form(written)
    if isinstance(named := result.get("backbones"), Mapping):
        result["backbones"] = {client: stand_in(str(name)) for client, name in named.items()}
    for kind in COMPONENTS:  # a component may name a further backbone
        if isinstance(options := (result.get(kind) or {}).get("options"), Mapping):
            small = {key: stand_in(value) if isinstance(value, str) else value for key, value in options.items()}
            result[kind] = {**result[kind], "options": small}
    for key, by in (section.get(DIVIDE) or {}).items():
        if not isinstance(by, int) or by < 1:
            raise UserError(f"The recipe {file} is divided by {by!r} at '{key}', which is no whole number from 1 on.")
        result = _divided(result, leaves(nested(str(key), 0))[-1].split("."), by)
    return lay_over(result, long_form({key: value for key, value in section.items() if key not in (DIVIDE, "rows")}))


def stand_in(backbone: str) -> str:
    """The small backbone that takes another's place, in full precision; itself where its card names none."""
    plugin = available("backbone").get(unadorned(backbone))
    return str((plugin.about.get("stand_in") if plugin is not None else None) or backbone)


def _divided(settings: Settings, path: Sequence[str], by: int) -> Settings:
    """A copy in which the number at a path, or each of a list of them, is divided; nothing where there is none."""
    first, *rest = path
    if first not in settings:
        return settings
    value = settings[first]
    if rest:
        return {**settings, first: _divided(dict(value), rest, by)} if isinstance(value, Mapping) else settings
    return {**settings, first: share(value, by)}


def share(value: Any, by: int) -> Any:
    """A whole number divided and rounded, at least 1; of a list each, once.

    >>> share(94, 10), share(1, 10), share([50, 100, 104], 10), share("all", 10)
    (9, 1, [5, 10], 'all')
    """
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(share(part, by) for part in value))
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return max(1, round(value / by)) if value else value
