"""Commands around the tables of papers; the work is done elsewhere, and imported only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_platform.cli.arguments import Data, EngineName, Gpus, Json, MachineOptions, Quiet, Ranks, Threads
from pfl_platform.cli.typed import words

papers = typer.Typer()


@papers.command()
def reproduce(
    table: Annotated[
        str | None, typer.Argument(metavar="[PAPER[/TABLE]]", help="A table; a paper, or nothing, lists what there is.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="full; or tiny: the same rows on tiny backbones.")] = "full",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what it needs, what of it is here, and what it would cost.")
    ] = False,
    seeds: Annotated[str, typer.Option("--seeds", help="How many seeds, or which: 3, or 0,5,7.")] = "3",
    row: Annotated[list[str] | None, typer.Option("--row", help="A row; default: all. May be repeated.")] = None,
    tflops: Annotated[float, typer.Option("--tflops", help="With --plan: 1e12 FLOPs per second of a GPU.")] = 100.0,
    tokens: Annotated[int | None, typer.Option("--tokens", help="With --plan: length of every row.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, over all rows: key=value. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder; default: runs/PAPER-TABLE.")] = None,
    threads: Threads = None,
    data: Data = None,
    engine: EngineName = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a paper's table and put ours beside theirs; the same command goes on where it was stopped."""
    from pfl_platform.cli import reproducing
    from pfl_platform.cli.launching import Ask

    if table is None or not {"/", "-"} & set(table):
        reproducing.list_tables(table, json)
        return
    order = reproducing.Order(
        table=table,
        scale=scale,
        seeds=seeds,
        rows=tuple(dict.fromkeys(row or ())),
        options=MachineOptions(threads=threads, engine=engine, gpus=gpus).settings,
        sets=tuple(settings or ()),
        out=out,
        ask=Ask(words(), ranks, gpus, None),
        json=json,
        quiet=quiet,
    )
    if plan:
        from pfl_platform.cli import planning

        planning.plan(order, planning.Rates(tflops, tokens))
    else:
        reproducing.reproduce(order)


@papers.command()
def assign(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help="A name of `list benchmarks`, or a folder.")],
    backbones: Annotated[str, typer.Option("--backbones", help="Two or more, the smallest first: A,B.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The scenario's file; runs and table lie beside it.")],
    by: Annotated[
        str | None, typer.Option("--by", help="The method whose gains decide, by default local training; or random.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option("--ratio", help="Clients by backbone: 3:7; default: equally many.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the training, or of the draw.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the training: key=value. May be repeated.")
    ] = None,
    data: Data = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a scenario, clients to backbones: who gains most from a larger one by local training gets it."""
    from pfl_platform.cli import assigning

    assigning.assign(assigning.Order(benchmark, backbones, by, ratio, seed, out, tuple(settings or ()), json, quiet))


@papers.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of `reproduce`, or finished runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")],
) -> None:
    """A sortable page from manifests, without anything else."""
    from pfl_platform.cli import boards

    boards.leaderboard(folders, out)
