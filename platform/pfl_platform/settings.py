"""Settings as nested mappings: read from YAML, written as `dotted.key=value`, laid over each other.

A component (adapter, objective, aggregator ...) is `{name: ..., options: {...}}`. For short it may be only its
name, and its options may stand beside the name: `adapter.r` means `adapter.options.r`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode

from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import UserError, nearest
from pfl_platform.validation import section_of

Settings = dict[str, Any]

COMPONENTS = ("adapter", "objective", "aggregator", "personalizer")
CHOICES = ("benchmark", *COMPONENTS)
BY_CLIENT = ("backbones", "clients")
LISTS = {"postprocessors": "postprocessor", "observers": "observer"}


class _Reader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number, `off` and `no` are words (fields that want a truth value accept
    them), and the same key twice is an error."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in {"bool", "float", "timestamp"}]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; `where` is named when it is not YAML.

    >>> parse("{lr: 1e-3, ema: off, rounds: 20}", "an example")
    {'lr': 0.001, 'ema': 'off', 'rounds': 20}
    """
    try:
        value = yaml.load(text, Loader=_Reader)
        json.dumps(value, skipkeys=True, default=str)  # finds what contains itself
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"Not readable as YAML: {where}{position}: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"Not readable as YAML: {where}: {error}.") from None
    except RecursionError:
        raise UserError(f"Not readable as YAML: {where}: it is nested too deeply.") from None
    except ValueError as error:  # a value of an explicit tag that is none, or one that contains itself
        raise UserError(f"Not readable as YAML: {where}: {error}.") from None
    return value


def read(file: Path) -> Settings:
    """The mapping in a YAML file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    value = deepcopy(_parsed(text, str(file)))
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"The file {file} must hold settings by name, such as `rounds: 20`.")
    return value


@lru_cache(maxsize=256)
def _parsed(text: str, where: str) -> Any:
    """A table's rows are read one by one, and YAML is slow. Nobody may change what is returned."""
    return parse(text, where)


def choice(value: Any, what: str) -> Settings:
    """The long form of a component.

    >>> choice("x", "adapter"), choice({"name": "x", "r": 8}, "adapter")
    ({'name': 'x'}, {'name': 'x', 'options': {'r': 8}})
    """
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise UserError(f"The setting '{what}' must be a name, or a name with options, not {value!r}.")
    beside = {key: part for key, part in value.items() if key not in Choice.model_fields}
    options = value.get("options", {})
    if not isinstance(options, Mapping):
        raise UserError(f"The setting '{what}.options' must hold options by name, not {options!r}.")
    if twice := sorted(beside.keys() & options.keys()):
        raise UserError(f"The option '{twice[0]}' of '{what}' is given twice, beside 'options' and in it.")
    if not isinstance(value.get("name", ""), str):
        raise UserError(f"The setting '{what}.name' must be a name, not {value['name']!r}.")
    long: Settings = {"name": value["name"]} if "name" in value else {}
    return {**long, "options": {**options, **beside}} if beside or options else long


def long_form(settings: Mapping[str, Any]) -> Settings:
    """The same settings with every component in its long form."""
    result: Settings = {}
    for key, value in settings.items():
        if key in CHOICES and value is not None:
            result[key] = choice(value, key)
        elif key in LISTS and isinstance(value, list | tuple):
            result[key] = [choice(part, key) for part in value]
        elif key == "tune" and isinstance(value, Mapping):
            result[key] = {leaves(nested(str(name), 0))[-1]: part for name, part in value.items()}
        elif key in BY_CLIENT and isinstance(value, Mapping):
            result[key] = {str(client_id): part for client_id, part in value.items()}  # YAML reads 0 as a number
        else:
            result[key] = value
    return result


def assignment(text: str) -> tuple[str, Any]:
    """The dotted key and the value of `key=value`; the value is YAML.

    >>> assignment("training.lr=1e-3")
    ('training.lr', 0.001)
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"'{text}' is no setting; write it as key=value, such as training.lr=1e-3.")
    return key.strip(), parse(value, f"the value of {key.strip()}")


def nested(key: str, value: Any) -> Settings:
    """Settings that say only `key: value`, for a dotted key; an unknown key is an error with the nearest known one.

    >>> nested("adapter.r", 8), nested("backbones.site-1.north", "m")
    ({'adapter': {'options': {'r': 8}}}, {'backbones': {'site-1.north': 'm'}})
    >>> nested("clients.site-1.north.adapter.r", 4)
    {'clients': {'site-1.north': {'adapter': {'r': 4}}}}
    """
    section: type[BaseModel] | None = RunConfig
    path: list[str] = []
    parts = key.split(".")
    while parts and section is not None:
        name = parts.pop(0)
        if section is Choice and name not in Choice.model_fields:
            path.append("options")
            parts = [name, *parts]
            break
        if name not in section.model_fields:
            raise UserError(f"There is no setting '{'.'.join([*path, name])}'." + nearest(name, section.model_fields))
        path.append(name)
        annotation = section.model_fields[name].annotation
        if get_origin(annotation) is dict and get_args(annotation)[1] is not Any and parts:
            section = section_of(get_args(annotation)[1])
            length = _name_length(parts, section, key, value)
            path.append(".".join(parts[:length]))  # names with dots in them, such as client ids
            parts = parts[length:]
            continue
        section = None if get_origin(annotation) in {dict, tuple} else section_of(annotation)
        if section is None and parts and get_origin(annotation) is not dict:
            raise UserError(f"The setting '{'.'.join(path)}' has no parts; '{key}' cannot be set.")
    for part in reversed([*path, *parts]):
        value = {part: value}
    return long_form(value)


def _name_length(parts: Sequence[str], section: type[BaseModel] | None, key: str, value: Any) -> int:
    """How many of the parts make up the name before a field of `section`; all when no field follows."""
    for length in range(1, len(parts)):
        if section is not None and parts[length] in section.model_fields:
            return length
    if section is not None and not isinstance(value, Mapping):
        kept = ", ".join(f"{key.partition('.')[0]}.NAME.{field}" for field in section.model_fields)
        raise UserError(f"There is no setting '{key}'; it must be of the form {kept}.")
    return len(parts)


def lay_over(settings: Settings, more: Mapping[str, Any]) -> Settings:
    """`settings` with `more` laid over them: mappings key by key, anything else replaced. Changes neither.

    Three keys have a rule of their own. A component that gets another name loses the options of the former one.
    Patterns of `lr_scale` that come later are tried first. `backbones` with a `'*'` forgets what was said of single
    clients.

    >>> lay_over({"adapter": {"name": "a", "options": {"r": 8}}}, {"adapter": {"name": "b"}})
    {'adapter': {'name': 'b'}}
    """
    result = dict(settings)
    for key, value in more.items():
        old = result.get(key)
        if not (isinstance(old, Mapping) and isinstance(value, Mapping)):
            result[key] = value
        elif (key in CHOICES and "name" in old and value.get("name", old["name"]) != old["name"]) or (
            key == "backbones" and "*" in value
        ):
            result[key] = dict(value)
        elif key == "lr_scale":
            result[key] = {**value, **{pattern: rate for pattern, rate in old.items() if pattern not in value}}
        else:
            result[key] = lay_over(dict(old), value)
    return result


def leaves(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all mappings and values in `settings`.

    >>> leaves({"training": {"lr": 1}})
    ['training', 'training.lr']
    """
    found: list[str] = []
    for key, value in settings.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{key}.")
    return found
