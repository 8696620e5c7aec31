"""Budgets by name: what runs can be held to, and tables of local steps that papers publish. Imports no torch.

A table is a YAML file in the folder `budgets/` of an installed method or benchmark:

    summary: what it is, and where it was published
    steps: {method: local steps, ...}

Numbers count in proportion to each other: with 24 local steps for a method that the table gives 100, one with 50 gets
12. They are rounded to the nearest whole number, halves to the even one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pfl_platform.errors import UserError, nearest
from pfl_platform.plugins import available
from pfl_platform.settings import read

FOLDER = "budgets"
Quantity = Literal["steps", "flops", "bytes", "seconds"]
MEASURED: Mapping[Quantity, str] = {
    "steps": "Every method has the same local steps.",
    "flops": "Local steps such that FLOPs of training and statistics match the first method's.",
    "bytes": "Rounds such that bytes up and down match the first method's, at equal local steps over the run.",
    "seconds": "Local steps such that seconds of training match the first method's, on this machine.",
}
"""Budgets that are no table."""


@dataclass(frozen=True)
class Table:
    """Published local steps by method, in the unit of the paper."""

    name: str
    summary: str
    steps: Mapping[str, float]
    file: Path

    def of(self, methods: Iterable[str], first: str, local_steps: int) -> dict[str, int]:
        """Local steps of each method where the first has so many.

        Raises `UserError` for a method that the table does not list, or gives less than one step.
        """
        result = {}
        for method in methods:
            if method not in self.steps:
                raise UserError(
                    f"The budget '{self.name}' says nothing of '{method}'; it lists {', '.join(self.steps)}. Leave it "
                    "out, or choose a budget that is measured, such as flops."
                )
            result[method] = round(local_steps * self.steps[method] / self.steps[first])
            if result[method] < 1:
                raise UserError(
                    f"The budget '{self.name}' leaves '{method}' no local step where '{first}' has {local_steps}; give "
                    "that one more local steps."
                )
        return result


def tables() -> dict[str, Path]:
    """All installed tables by name: `budgets/*.yaml` beside methods and benchmarks."""
    plugins = [*available("method").values(), *available("benchmark").values()]
    folders = sorted({folder for plugin in plugins if (folder := plugin.folder) is not None})
    return {file.stem: file for folder in folders for file in sorted((folder / FOLDER).glob("*.yaml"))}


def find(name: str) -> Quantity | Table:
    """One of `MEASURED`, or a table; an unknown name is a `UserError` with the nearest known one.

    >>> find("flops")
    'flops'
    >>> find("flop")
    Traceback (most recent call last):
    ...
    pfl_platform.errors.UserError: There is no budget called 'flop'. Did you mean 'flops'?
    """
    files = tables()
    for quantity in MEASURED:
        if name == quantity:
            return quantity
    if name not in files:
        raise UserError(f"There is no budget called '{name}'." + nearest(name, [*MEASURED, *files]))
    return table(name, files[name])


def table(name: str, file: Path) -> Table:
    """The table in a file, checked."""
    written = read(file)
    steps: Any = written.get("steps")
    if not isinstance(steps, Mapping) or not steps or not all(_positive(value) for value in steps.values()):
        raise UserError(f"The table {file} must hold `steps` by method, numbers above 0.")
    return Table(name, " ".join(str(written.get("summary", "")).split()), dict(steps), file)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
