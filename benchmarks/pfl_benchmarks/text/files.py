"""Records of text: JSON lists and JSON lines, with errors that say where."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfl_benchmarks.folder.files import kind_of, read_list
from pfl_platform.data import IMAGE_MARK
from pfl_platform.errors import UserError


def records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) of a file: JSON lines where its name ends in `.jsonl`, else one JSON list of objects."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    for where, record in _lines(path) if path.suffix == ".jsonl" else _list(path):
        if not isinstance(record, dict):
            raise UserError(f"{where}: a record is an object, and this is {kind_of(record)}.")
        yield where, record


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    if zipfile.is_zipfile(path):
        raise UserError(f"{path} is a zip archive; unpack it first.")
    for index, record in enumerate(read_list(path, "records")):
        yield f"{path}, record {index}", record


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield f"{path}, line {number}", json.loads(line)
                    except (json.JSONDecodeError, RecursionError) as error:
                        message = getattr(error, "msg", "nested too deeply")
                        raise UserError(f"{path}, line {number} is not valid JSON: {message}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def text_of(record: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    """A field that is a text, without white space at its ends; `empty`: it may be missing or say nothing."""
    value = record.get(key)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        found = "is missing" if key not in record else f"is {kind_of(value)}"
        raise UserError(f"{where}: '{key}' must be a text and {found}.")
    value = value.strip()
    if not value and not empty:
        raise UserError(f"{where}: '{key}' is empty.")
    if IMAGE_MARK in value:
        raise UserError(f"{where}: '{key}' holds the mark {IMAGE_MARK}, which stands for a picture.")
    return value
