"""The commands `data check` and `data layout`; the work is done in `data`, and imported only when it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from pfl_platform.cli.arguments import Data, Json

files = typer.Typer(help="The files of a benchmark.", no_args_is_help=True, rich_markup_mode=None)


@files.command("check")
def data_check(
    benchmark: Annotated[str, typer.Argument(metavar="NAME", help="A name of `list benchmarks`, or a folder.")],
    data: Data = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the benchmark: key=value. May be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """What of a benchmark's files is there, with counts; exit code 1 when something is not."""
    from pfl_platform.cli import data as command

    if not command.check(benchmark, settings or (), json):
        raise typer.Exit(1)


@files.command("layout")
def data_layout(
    benchmark: Annotated[str, typer.Argument(metavar="NAME", help="A name of `list benchmarks`.")],
    json: Json = False,
) -> None:
    """The files that a benchmark expects, and where its authors publish them."""
    from pfl_platform.cli import data as command

    command.layout(benchmark, json)
