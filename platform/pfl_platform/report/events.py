"""Writes what happens in a run to `events.jsonl` in its folder, one JSON object per line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pfl_platform.config import Section
from pfl_platform.hookspecs import Options, hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.observers import Observer


class EventsOptions(Section):
    """Options of the observer `events`."""

    steps: bool = Field(False, description="a line for every local step, too")


@hookimpl
def pfl_make_observer(name: str, options: Options) -> Observer | None:
    """The observer `events`."""
    if name != "events":
        return None
    from pfl_platform.report.journal import Journal

    return Journal(steps=EventsOptions.model_validate(dict(options)).steps)
