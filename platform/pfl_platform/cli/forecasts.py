"""`plan`: what a run would take, before it; the work is done elsewhere, and imported only when it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from pfl_platform.cli.arguments import (
    AdapterName,
    BackboneName,
    BatchClients,
    BenchmarkName,
    Data,
    EngineName,
    Gpus,
    Json,
    LocalSteps,
    Plugin,
    PublicSet,
    PublicSize,
    Ranks,
    Recipe,
    Rounds,
    Row,
    Seed,
    Settings,
    Shards,
    Threads,
    Zero,
)

forecasts = typer.Typer()


@forecasts.command()
def plan(
    named: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A name of `list recipes`, or a YAML file.")
    ] = None,
    plugin: Plugin = None,
    benchmark: BenchmarkName = None,
    recipe: Recipe = None,
    row: Row = None,
    adapter: AdapterName = None,
    backbone: BackboneName = None,
    rounds: Rounds = None,
    local_steps: LocalSteps = None,
    seed: Seed = None,
    public: PublicSet = None,
    public_size: PublicSize = None,
    settings: Settings = None,
    threads: Threads = None,
    data: Data = None,
    engine: EngineName = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    zero: Zero = None,
    shards: Shards = None,
    batch_clients: BatchClients = None,
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

    if recipe is not None and named is not None:
        raise UserError(f"Two recipes are named, {named} and {recipe}; name one.")
    request = asking.request(
        plugin=plugin,
        benchmark=benchmark,
        recipe=recipe or named,
        adapter=adapter,
        backbone=backbone,
        rounds=rounds,
        local_steps=local_steps,
        seed=seed,
        public=public,
        public_size=public_size,
        settings=settings,
        threads=threads,
        engine=engine,
        gpus=gpus,
        zero=zero,
        shards=shards,
        batch_clients=batch_clients,
    )
    order = forecasting.Order(request, tuple(row or ()), ranks, gpus, memory, calibrate, json)
    forecasting.forecast(order)
