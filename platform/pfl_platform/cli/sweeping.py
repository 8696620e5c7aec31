"""`sweep RECIPE key=a,b,c`: the same run over values of settings and seeds, a table, and a picture of what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pfl_platform.cli import plans, running
from pfl_platform.cli.output import console
from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.evaluation.comparison import summarise
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.tuning import grid, label

PICTURE = "sweep.png"


@dataclass(frozen=True)
class Point:
    """One combination of values, in one seed: where it runs, and its configuration."""

    values: Mapping[str, Any]
    folder: str
    config: RunConfig


def sweep(request: Request, texts: Sequence[str], seeds: str, out: Path, quiet: bool) -> None:
    """Runs what is not finished yet, prints the table and draws. The same command goes on where it was stopped."""
    points = points_of(request, texts, seeds)
    runs = {point.folder: point.config for point in points}
    if plans.begun(out, runs):
        running.resume(out, quiet)
    else:
        running.start(runs, out, quiet)
    results = [running.results_of(out / point.folder) for point in points]
    file = out / PICTURE
    draw(found_of(points, results), file)
    console().print(f"As a picture: {file}", soft_wrap=True)


def points_of(request: Request, texts: Sequence[str], seeds: str) -> list[Point]:
    """All combinations of values, the last setting changing fastest, each in all seeds. Every one is resolved, so an
    error in the last shows before the first starts."""
    grids = dict(map(grid, texts))
    if len(grids) != len(texts) or not grids:
        raise UserError("Name each setting once, with its values: sweep RECIPE training.lr=1e-4,3e-4.")
    if "seed" in grids:
        raise UserError("Seeds are given by --seeds: a number of them, or 0,5,7.")
    resolver = Resolver(PluginManager())
    found = []
    for values in product(*grids.values()):
        chosen = dict(zip(grids, values, strict=True))
        for seed in seeds_of(seeds):
            options = {**request.options, **chosen, "seed": seed, "label": label(chosen)}
            config = resolver.resolve(replace(request, options=options))
            folder = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())
            safe = "".join(sign if sign.isalnum() or sign in "=_.-" else "-" for sign in folder)
            found.append(Point(chosen, f"{safe}/seed{seed}", config))
    if len({point.folder for point in found}) != len(found):
        raise UserError("Two of the combinations have the same name; give each value once.")
    return found


def seeds_of(text: str) -> list[int]:
    """Which seeds: the first so many, or those that are listed.

    >>> seeds_of("3"), seeds_of("0,5,7"), seeds_of("4,")
    ([0, 1, 2], [0, 5, 7], [4])
    """
    numbers = running.numbers(text, "--seeds")
    if "," in text:
        return numbers
    if len(numbers) != 1 or numbers[0] < 1:
        raise UserError(f"--seeds is a number of seeds, at least 1, or a list such as 0,5,7; '{text}' is neither.")
    return list(range(numbers[0]))


def found_of(points: Sequence[Point], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the picture shows: the settings, their values in order, and per combination mean and deviation over seeds of
    Self and Others after the last round."""
    groups = {group["label"]: group for group in summarise(results)}
    keys = list(points[0].values)
    cells: list[dict[str, Any]] = []
    for point in points:
        group = groups[point.config.label]
        if not any(cell["values"] == point.values for cell in cells):
            cells.append({"values": point.values, **{kind: group[kind]["last"] for kind in ("self", "others")}})
    return {"keys": keys, "cells": cells}


def draw(found: Mapping[str, Any], file: Path) -> None:
    """One setting: scores along its values. Two: a heat map of Self. More: a bar for each combination."""
    from pfl_platform.report.pictures import bars, heat_maps

    keys, cells = found["keys"], found["cells"]
    if len(keys) == 2:
        rows, columns = (list(dict.fromkeys(str(cell["values"][key]) for cell in cells)) for key in keys)
        at = {tuple(str(cell["values"][key]) for key in keys): cell["self"]["mean"] for cell in cells}
        table = [[at.get((row, column)) for column in columns] for row in rows]
        names = [key.rpartition(".")[2] for key in keys]
        heat_maps(
            {f"Self A_last: {names[0]} down, {names[1]} across": table},
            [f"{names[0]}={row}" for row in rows],
            [f"{names[1]}={column}" for column in columns],
            file,
        )
        return
    series = {
        kind.capitalize(): [(cell[kind]["mean"], cell[kind]["std"]) for cell in cells]
        for kind in ("self", "others")
        if any(cell[kind]["mean"] is not None for cell in cells)
    }
    bars(series, [label(cell["values"]) for cell in cells], "A_last, mean over clients", file)
