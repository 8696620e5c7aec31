"""All question families by name."""

from __future__ import annotations

from collections.abc import Mapping

from pfl_benchmarks.drake_synth import rows, single
from pfl_benchmarks.drake_synth.puzzles import Family

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, Family] = {
    value.name: value for module in (single, rows) for value in vars(module).values() if isinstance(value, Family)
}
