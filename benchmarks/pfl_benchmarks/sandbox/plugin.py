"""HumanEval's tests, run in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.evaluation.surfaces import Metric


class HumanEvalOptions(BaseModel):
    """Options of the metric `humaneval`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_code: bool = Field(False, description="run what models write, in a sandbox; nothing is scored without")
    seconds: int = Field(5, ge=1, le=600, description="time per program")
    memory_mb: int = Field(512, ge=64, description="memory per program, with the interpreter's own")


@hookimpl
def pfl_make_metric(name: str, options: Mapping[str, Any]) -> Metric | None:
    """The metric `humaneval`."""
    if name != "humaneval":
        return None
    settings = HumanEvalOptions.model_validate(options)

    from pfl_benchmarks.sandbox.humaneval import HumanEval
    from pfl_benchmarks.sandbox.running import Limits

    return HumanEval(settings.run_code, Limits(settings.seconds, settings.memory_mb))
