"""The commands and their options; the work is done elsewhere, and imported only when it is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pfl_platform import __version__
from pfl_platform.cli import typed
from pfl_platform.cli.arguments import (
    Data,
    Gpus,
    Hostfile,
    Json,
    MachineOptions,
    Markdown,
    Profiled,
    Quiet,
    Ranks,
    RunOptions,
)
from pfl_platform.cli.files import files
from pfl_platform.cli.forecasts import forecasts
from pfl_platform.cli.grouped import grouped
from pfl_platform.cli.output import complain, form_of
from pfl_platform.cli.papers import papers
from pfl_platform.cli.studies import studies
from pfl_platform.errors import UserError

app = typer.Typer(
    name="pfl-platform",
    help="Personalised federated fine-tuning of multimodal foundation models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(studies)
app.add_typer(papers)
app.add_typer(forecasts)
app.add_typer(files, name="data")


def _version(asked: bool) -> None:
    if asked:
        print(f"pfl-platform {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass  # `main` reads --debug: an error may come before this is called


@app.command()
@grouped
def run(
    asked: RunOptions,
    machine: MachineOptions,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Several runs, one per seed: 0,1,2.")] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Run these methods too, under the same budget: a,b.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="What those that are compared have in common: steps (default), flops, bytes, seconds, or a table of "
            "`list budgets`.",
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", help="Choose a setting on validation samples: key=a,b,c. May be repeated."),
    ] = None,
    hostfile: Hostfile = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder; default: a new one in runs/.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole configuration; run nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start even what seems not to fit into memory or onto the disk.")
    ] = False,
    profile: Profiled = False,
    quiet: Quiet = False,
) -> None:
    """Run a method on a benchmark."""
    from pfl_platform.cli import asking, budgets, running
    from pfl_platform.cli.launching import Ask

    plan = running.plan(
        asking.request(asked, machine, tune=tune, force=force),
        compare=running.others(compare),
        seeds=running.numbers(seeds, "--seeds"),
        rows=asked.row or (),
        budget=budget,
    )
    if print_config:
        running.print_plan(budgets.foreseen(plan, budget))
        return
    running.start(plan, out, quiet, budget, Ask(typed.words(), machine.ranks, machine.gpus, hostfile), profile)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of runs that are compared.")],
    data: Data = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    hostfile: Hostfile = None,
    profile: Profiled = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped, from its last finished task; also with other numbers of ranks."""
    from pfl_platform.cli import running
    from pfl_platform.cli.launching import Ask

    running.resume(run, quiet, Ask(typed.words(), ranks, gpus, hostfile), profile=profile)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    json: Json = False,
    markdown: Markdown = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Draw accuracy against FLOPs and against bytes into this folder.")
    ] = None,
) -> None:
    """One table of several finished runs."""
    from pfl_platform.cli import running

    running.compare(runs, form_of(json, markdown), plots)


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="plugins, benchmarks, backbones, adapters, ..., recipes, budgets")
    ],
    json: Json = False,
) -> None:
    """List what is installed."""
    from pfl_platform.cli import listing

    listing.list_kind(kind, json)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="NAME|RUN", help="A plugin or recipe by name, or a run folder.")],
    json: Json = False,
    markdown: Markdown = False,
    who_helped_whom: Annotated[
        bool, typer.Option("--who-helped-whom", help="Of a run: how much each client weighed in what each got.")
    ] = False,
    alone: Annotated[
        Path | None, typer.Option("--alone", help="A run that shared nothing, to which gains are measured.")
    ] = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="Of a run: serialised bytes up and down, by tensor.")
    ] = False,
    round_number: Annotated[int | None, typer.Option("--round", help="With --messages: of one round, from 1.")] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Of a run: what was answered wrongly, and a page with the pictures.")
    ] = False,
    task: Annotated[
        str | None, typer.Option("--task", help="With --errors: on this task, also where it is another's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="With --errors: how many are shown; default: 50.")
    ] = None,
    client: Annotated[str | None, typer.Option("--client", help="With --messages or --errors: of one client.")] = None,
) -> None:
    """Show a plugin with its options, or a run with its results."""
    from pfl_platform.cli import evaluating, listing, showing
    from pfl_platform.cli import messages as travelled

    if round_number is not None and not messages:
        raise UserError("--round chooses among what travelled; give --messages with it.")
    if (task is not None or limit is not None) and not errors:
        raise UserError("--task and --limit choose among mistakes; give --errors with them.")
    if client is not None and not messages and not errors:
        raise UserError("--client chooses among what travelled, or mistakes; give --messages or --errors with it.")
    if errors:
        evaluating.errors(Path(what), client, task, 50 if limit is None else limit, json)
    elif messages:
        travelled.show_messages(Path(what), client, round_number, json)
    elif who_helped_whom:
        showing.show_helped(Path(what), alone, json)
    elif Path(what).is_dir():
        showing.show(Path(what), form_of(json, markdown))
    else:
        listing.show(what, json)


def _add_commands(words: Sequence[str]) -> None:
    """Commands that packages announce (`pfl_platform.commands`). The one that is called is imported; for the list of
    commands all are."""
    from pfl_platform.plugins import commands

    asked = next((word for word in words if not word.startswith("-")), None)
    there = {group.name for group in app.registered_groups}
    for name, load in commands().items():
        if name not in there and asked in (None, name):
            app.add_typer(load(), name=name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 1 (a run stopped), 2 (bad input), 130 or 143 (a signal)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    typed.take(words)
    _add_commands(words)
    command = typer.main.get_command(app)
    try:
        code = command.main(words, prog_name="pfl-platform", standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # what the system refuses before a run begins: a name that is too long, no permission
        if debug:
            raise
        complain(f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error))
        return UserError.exit_code
    except Exception as error:
        # A mistyped command or option: typer's own classes differ between its versions, their two members do not.
        if debug or not hasattr(error, "format_message"):
            raise
        complain(error.format_message())
        return int(getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0
