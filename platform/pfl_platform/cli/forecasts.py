"""`plan`: what a run would take, before it; the work is done elsewhere, and imported only when it is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from pfl_platform.cli.arguments import Json, MachineOptions, RunOptions
from pfl_platform.cli.grouped import grouped

forecasts = typer.Typer()


@forecasts.command()
@grouped
def plan(
    asked: RunOptions,
    machine: MachineOptions,
    named: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A name of `list recipes`, or a YAML file.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GB of the device that it is for; default: what is here.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this run's speed here by some steps of it; loads weights.")
    ] = False,
    json: Json = False,
) -> None:
    """What a run would take: memory by part, disk, bytes, FLOPs and time. No weights are read; nothing is run."""
    from pfl_platform.cli import asking, forecasting
    from pfl_platform.errors import UserError

    if asked.recipe is not None and named is not None:
        raise UserError(f"Two recipes are named, {named} and {asked.recipe}; name one.")
    request = asking.request(replace(asked, recipe=asked.recipe or named), machine)
    order = forecasting.Order(request, tuple(asked.row or ()), machine.ranks, machine.gpus, memory, calibrate, json)
    forecasting.forecast(order)
