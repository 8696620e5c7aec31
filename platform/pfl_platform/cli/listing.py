"""`list` and `show`: what is installed. `list` reads metadata only."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pfl_platform.budgets import MEASURED, table, tables
from pfl_platform.cli.output import console, print_json, print_rows
from pfl_platform.errors import UserError, nearest
from pfl_platform.hookspecs import KINDS
from pfl_platform.plugins import Plugin, PluginManager, available
from pfl_platform.recipes import ABOUT, method_file, recipes
from pfl_platform.report.units import byte_text
from pfl_platform.settings import COMPONENTS, read
from pfl_platform.validation import section_of


def list_kind(kind: str, as_json: bool) -> None:
    """Prints the plugins of a kind (singular or plural; `plugins` are methods), or the recipes."""
    plural = {"plugins": "method", **{f"{name}s": name for name in KINDS}}
    if kind in ("recipe", "recipes"):
        rows = [
            {"name": name, "summary": " ".join(str(read(file).get("summary", "")).split()), "file": str(file)}
            for name, files in recipes().items()
            for file in files
        ]
        columns = ["name", "summary", "file"]
    elif kind in ("budget", "budgets"):
        rows = [{"name": name, "summary": what, "file": ""} for name, what in MEASURED.items()]
        rows += [
            {"name": name, "summary": table(name, file).summary, "file": str(file)} for name, file in tables().items()
        ]
        columns = ["name", "summary", "file"]
    else:
        singular = plural.get(kind, kind)
        if singular not in KINDS:
            raise UserError(f"'{kind}' cannot be listed." + nearest(kind, [*plural, "recipes", "budgets"]))
        rows = [_row(plugin) for plugin in available(singular).values()]
        columns = ["name", "summary", "package", "version"]
        if singular == "benchmark":
            rows, compared = _compared(rows)
            if not as_json:  # side by side they are too wide for a terminal
                print_rows(rows, ["name", *compared])
                console().print()
    if as_json:
        print_json(rows)
    else:
        print_rows(rows, columns)


def show(name: str, as_json: bool) -> None:
    """Prints every plugin and recipe of that name: where it comes from, what it composes, its options. Of a method also
    its components."""
    found = [plugins[name] for kind in KINDS if name in (plugins := available(kind))]
    found += [part for plugin in found if plugin.kind == "method" for part in _parts(plugin) if part not in found]
    files = recipes().get(name, [])
    if not found and not files:
        known = {plugin for kind in KINDS for plugin in available(kind)} | set(recipes())
        raise UserError(f"Nothing is called '{name}', and no run folder is there." + nearest(name, known))
    manager = PluginManager()
    cards = [_card(plugin, manager) for plugin in found]
    cards += [{"kind": "recipe", "name": name, "file": str(file), "settings": read(file)} for file in files]
    if as_json:
        print_json(cards)
        return
    for index, card in enumerate(cards):
        if index:
            print()
        _print_card(card)


def _parts(method: Plugin) -> list[Plugin]:
    """The plugins that a method's recipe names as its components."""
    written = read(method_file(method))
    named = {kind: value.get("name") if isinstance(value, Mapping) else value for kind, value in written.items()}
    return [available(kind)[name] for kind in COMPONENTS if (name := named.get(kind)) in available(kind)]


MARKS = {"True": "yes", "False": "no"}


def _compared(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of benchmarks with what their cards say of size and scores, and compare them by (`compared`); and these
    columns. What a card does not say is a dash."""
    abouts = {row["name"]: available("benchmark")[row["name"]].about for row in rows}
    features = dict.fromkeys(key for about in abouts.values() for key in about.get("compared") or {})
    titles = {key: key.replace("_", " ") for key in features}
    told = []
    for row in rows:
        about = abouts[row["name"]]
        size = {key: str(about.get(key, "-")) for key in ("clients x tasks", "scored by")}
        own = about.get("compared") or {}
        told.append({**row, **size, **{title: MARKS.get(str(own.get(key)), "-") for key, title in titles.items()}})
    return told, ["clients x tasks", "scored by", *titles.values()]


def _row(plugin: Plugin) -> dict[str, str]:
    return {"name": plugin.name, "summary": plugin.summary, "package": plugin.package, "version": plugin.version}


def _card(plugin: Plugin, manager: PluginManager) -> dict[str, Any]:
    card: dict[str, Any] = {"kind": plugin.kind, **_row(plugin), "module": plugin.module}
    readme = plugin.folder / "README.md" if plugin.folder is not None else None
    if readme is not None and readme.is_file():
        card["readme"] = str(readme)
    if plugin.kind == "method":
        written = read(method_file(plugin))
        card |= {key: " ".join(str(written[key]).split()) for key in ABOUT if key in written}
        card["settings"] = {key: value for key, value in written.items() if key not in ABOUT}
        return card
    card |= {
        key: value for key, value in plugin.about.items() if key not in card and not isinstance(value, dict | list)
    }
    card |= {key: value for key in ("adaptable", "memory") if (value := plugin.about.get(key))}
    if measured := plugin.about.get("measured"):
        card["measured"] = measured
    if (model := manager.options(plugin.kind, plugin.name)) is not None:
        card["options"] = options(model)
    if plugin.kind == "benchmark":
        from pfl_platform.cli.sheets import of_benchmark

        card |= of_benchmark(plugin, manager)
    return card


def options(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Name, type, default and meaning of each field of an options model."""
    rows = []
    for name, spec in model.model_fields.items():
        section = section_of(spec.annotation)
        if section is spec.annotation and section is not None:
            rows += [{**row, "option": f"{name}.{row['option']}"} for row in options(section)]
            continue
        default = spec.get_default(call_default_factory=True, validated_data={})
        rows.append(
            {
                "option": name,
                "type": _type_name(spec.annotation),
                "default": "(required)" if default is PydanticUndefined else default,
                "meaning": " ".join((spec.description or "").split()),
            }
        )
    return rows


def _type_name(annotation: Any) -> str:
    """A type as a user reads it: allowed words instead of `Literal`.

    >>> from typing import Literal
    >>> _type_name(int), _type_name(Literal["a", "b"]), _type_name(str | None)
    ('int', 'a | b', 'str | None')
    """
    if get_origin(annotation) is Literal:
        return " | ".join(str(word) for word in get_args(annotation))
    if get_origin(annotation) in {Union, UnionType}:
        return " | ".join(_type_name(part) for part in get_args(annotation))
    plain = isinstance(annotation, type) and not get_args(annotation)
    return "None" if annotation is type(None) else annotation.__name__ if plain else str(annotation)


def _told(key: str, value: Any) -> str:
    """A value as a reader wants it: names one after the other, bytes with their unit.

    >>> _told("adaptable", ["a", "b"]), _told("memory", {"float32": 4_000_000})
    ('a, b', 'float32 4.00 MB')
    """
    if key == "memory" and isinstance(value, Mapping):
        return ", ".join(f"{name} {byte_text(size)}" for name, size in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _print_card(card: Mapping[str, Any]) -> None:
    screen = console(width=1000)
    screen.print(f"{card['kind']} {card['name']}", style="bold", markup=False, highlight=False)
    for key, value in card.items():
        if key not in ("kind", "name", "settings", "options", "tree", "samples", "data") and value:
            screen.print(f"  {key}: {' '.join(_told(key, value).split())}", markup=False, highlight=False)
    if card.get("settings"):
        import yaml

        print("  settings:")
        text = yaml.safe_dump(card["settings"], sort_keys=False, allow_unicode=True, width=100)
        print("".join(f"    {line}\n" for line in text.splitlines()), end="")
    if card.get("options"):
        print_rows(card["options"], ["option", "type", "default", "meaning"])
    if card.get("tree") or card.get("data"):
        from pfl_platform.cli.sheets import print_sheet

        print_sheet(card)
