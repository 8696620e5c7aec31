"""One file of conversations, in the form of LLaVA-Instruct, as a federation of one client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.instructions.options import InstructionOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    if name != "instructions":
        return None
    settings = InstructionOptions.model_validate(options)
    from pfl_benchmarks.instructions.loading import load

    return load(settings)
