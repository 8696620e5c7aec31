"""JSON files, with errors that say where, and files that have to lie in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pfl_platform.errors import UserError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of one half of a character."""


class _TwiceError(Exception):
    """A key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # which of the two values is meant, nobody can know
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def confined(path: Path, root: Path) -> Path:
    """`path`, if it still lies in `root` once links are followed."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # RuntimeError: links that go round in a circle
        raise UserError(f"{path} cannot be read.") from None
    if not inside:
        raise UserError(f"{path} leaves the folder {root} through a link.")
    return path


def read_json(path: Path) -> Any:
    """The content of a UTF-8 JSON file. Errors name the file and the position, or the key that an object has twice."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}.") from None
    try:
        content = json.loads(text, object_pairs_hook=_object)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # fails at a half that stands alone
    except _TwiceError as error:
        raise UserError(f"{path} has the key '{error}' twice in one object.") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{path} holds half of a character (an escape such as \\ud83d without its second half); mend the text."
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is not valid JSON: {error.msg} at {where}.") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path} is not valid JSON: {str(error).partition(';')[0]}.") from None
    return content


def read_list(path: Path, what: str) -> list[Any]:
    """The content of a JSON file that holds a list of `what`."""
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a list of {what}, and holds {kind_of(content)}.")
    return content


def kind_of(value: Any) -> str:
    """What JSON calls a value.

    >>> kind_of({}), kind_of(None), kind_of(True), kind_of(1.5)
    ('an object', 'null', 'a truth value', 'a number')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
