"""The plan of several runs in one folder: the sub-folder and the configuration of each, so that all can be finished."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.settings import read
from pfl_platform.store.atomic import write_atomic
from pfl_platform.validation import explain

Plan = dict[str, RunConfig]
"""Runs by sub-folder; '' for a single run, which has the folder to itself."""

PLAN_FILE = "plan.yaml"


def has_plan(folder: Path) -> bool:
    """Whether several runs were begun in this folder."""
    return (folder / PLAN_FILE).is_file()


def read_plan(folder: Path) -> Plan:
    """The runs that were begun in a folder. Raises `UserError` for a file that no longer says so."""
    file = folder / PLAN_FILE
    try:
        runs = {name: RunConfig.model_validate(value) for name, value in read(file).items()}
    except ValidationError as error:
        raise UserError(f"The file {file} was changed: {explain(error, RunConfig)}") from None
    if not runs:
        raise UserError(f"The file {file} was changed: it names no run.")
    return runs


def write_plan(runs: Plan, folder: Path) -> None:
    """Makes the folder of several runs; on an error nothing is left behind."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        write_atomic(folder / PLAN_FILE, [yaml.safe_dump(dumped(runs), sort_keys=False, allow_unicode=True).encode()])
    except OSError as error:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise UserError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error


def dumped(runs: Plan) -> dict[str, Any]:
    """As YAML and JSON have it."""
    return {name: config.model_dump(mode="json") for name, config in runs.items()}


def begun(folder: Path, runs: Plan, other: str = "another") -> bool:
    """Whether exactly these runs were begun in the folder. Raises `UserError` where others were.

    other: what `--out` may name instead, for the sentence.
    """
    if not has_plan(folder):
        return False
    if read_plan(folder) != runs:
        raise UserError(f"The folder {folder} holds other runs than these; name {other} with --out.")
    return True


def firsts(runs: Plan) -> dict[str, str]:
    """Each run's folder -> that of the first run that differs from it in no more than the seed."""
    found: dict[str, str] = {}
    seen: list[tuple[RunConfig, str]] = []
    for place, config in runs.items():
        bare = config.model_copy(update={"seed": 0})
        first = next((other for known, other in seen if known == bare), None)
        if first is None:
            seen.append((bare, place))
        found[place] = place if first is None else first
    return found
