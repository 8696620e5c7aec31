"""Shows how a run is getting on: a live display on a terminal, plain lines elsewhere; both on the error stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pfl_platform.config import Section
from pfl_platform.hookspecs import Options, hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.observers import Observer


class ProgressOptions(Section):
    """Options of the observer `progress`."""

    style: Literal["auto", "live", "plain"] = Field("auto", description="auto: live on a terminal, else plain")
    heartbeat: float = Field(60.0, gt=0, description="plain: a line after so many seconds without one")


@hookimpl
def pfl_make_observer(name: str, options: Options) -> Observer | None:
    """The observer `progress`."""
    if name != "progress":
        return None
    from rich.console import Console

    from pfl_platform.report.display import LiveProgress, PlainProgress

    chosen = ProgressOptions.model_validate(dict(options))
    console = Console(stderr=True, highlight=False)
    lively = console.is_terminal and not console.is_dumb_terminal
    if chosen.style == "live" or (chosen.style == "auto" and lively):
        return LiveProgress(console)
    return PlainProgress(console.file, chosen.heartbeat)
