"""Commands that share options: a dataclass of them is one parameter of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar, get_type_hints

R = TypeVar("R")


def grouped(command: Callable[..., R]) -> Callable[..., R]:
    """A command whose parameters that are dataclasses show as options of their own, one for each field.

    Fields are annotated as parameters of a Typer command are, and have its defaults:

    >>> from dataclasses import make_dataclass
    >>> Place = make_dataclass("Place", [("city", str, "Bonn"), ("number", int, 1)])
    >>> def visit(place: Place, again: bool = False) -> str:
    ...     return f"{place.city} {place.number} {again}"
    >>> visit.__annotations__ = {"place": Place, "again": bool, "return": str}  # a doctest has no module to look in
    >>> list(signature(grouped(visit)).parameters)
    ['city', 'number', 'again']
    >>> grouped(visit)(city="Ulm", number=2, again=True)
    'Ulm 2 True'
    """
    hints = get_type_hints(command, include_extras=True)
    seen: list[Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            own = get_type_hints(kind, include_extras=True)
            seen += [_option(field.name, own[field.name], field.default) for field in fields(kind)]
        else:
            seen.append(_option(name, kind, parameter.default))

    names = [parameter.name for parameter in seen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TypeError(f"{command.__name__} has the option '{twice[0]}' twice")

    @wraps(command)
    def called(**said: Any) -> R:
        given = {
            name: kind(**{field.name: said.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        return command(**given, **said)

    called.__signature__ = Signature(seen)  # type: ignore[attr-defined]  # what Typer and `inspect` read
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in seen}
    return called


def _option(name: str, kind: Any, default: Any) -> Parameter:
    none = default is MISSING or default is Parameter.empty
    return Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if none else default, annotation=kind)
