"""`reproduce`: runs a paper's table, goes on where it was, and puts ours beside theirs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfl_platform.cli import plans, running
from pfl_platform.cli.launching import Ask
from pfl_platform.cli.output import console, print_json, print_rows
from pfl_platform.cli.sweeping import seeds_of
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError, nearest
from pfl_platform.plugins import PluginManager
from pfl_platform.published import Table, find_table, tables
from pfl_platform.recipes import Request, Resolver

SCALES = ("full", "tiny")
TABLE, PICTURE = "table.md", "table.png"


@dataclass(frozen=True)
class Order:
    """What the user asked for."""

    table: str
    scale: str
    seeds: str
    rows: Sequence[str]
    options: Mapping[str, Any]
    sets: Sequence[str]
    out: Path | None
    ask: Ask
    json: bool
    quiet: bool


def list_tables(paper: str | None, as_json: bool) -> None:
    """All tables, or those of one paper, a line each."""
    known = tables()
    papers = list(dict.fromkeys(table.paper for table in known.values()))
    if paper is not None and paper not in papers:
        raise UserError(f"There are no tables of '{paper}'." + nearest(paper, papers))
    rows = [
        {"table": title, "what it is": table.summary} for title, table in known.items() if paper in (None, table.paper)
    ]
    if as_json:
        print_json([{"table": title, **vars(known[title])} for title in (row["table"] for row in rows)])
    else:
        print_rows(rows, ["table", "what it is"])


def requests(order: Order) -> tuple[Table, Request]:
    """The table, and what is asked of the recipe resolver."""
    if order.scale not in SCALES:
        raise UserError(f"--scale is one of {' and '.join(SCALES)}; '{order.scale}' is not.")
    table = find_table(order.table)
    request = Request(recipe=str(table.file), options=order.options, sets=order.sets, tiny=order.scale == "tiny")
    return table, request


def reproduce(order: Order) -> None:
    """Runs all rows in all seeds, or what of them is not finished yet; then writes the table, a picture and the
    manifest."""
    from pfl_platform.engines.ranks.place import here

    table, request = requests(order)
    notes = remarks(table, request, order)
    seeds = seeds_of(order.seeds)
    runs = running.plan(request, seeds=seeds, rows=order.rows)
    runs = {name or f"seed{config.seed}": config for name, config in runs.items()}
    out = order.out or Path("runs", f"{table.paper}-{table.name}" + ("-tiny" if request.tiny else ""))
    told = sys.stderr if order.json else sys.stdout
    if here() is None and not order.quiet:
        for note in notes:
            print(note, file=told)
    if not plans.begun(out, runs):
        if here() is not None:
            raise UserError(f"Nothing is begun in {out}; start `reproduce` without a launcher, with --gpus or --ranks.")
        running.lay_out(runs, out)
    running.resume(out, order.quiet, order.ask, show=False)
    if here() is None:
        report(table, order, out, runs, notes)


def report(table: Table, order: Order, out: Path, runs: plans.Plan, notes: Sequence[str]) -> None:
    """Ours beside theirs: on the screen, as Markdown, as a picture, in the manifest."""
    from pfl_platform import manifests
    from pfl_platform.report.markdown import to_markdown
    from pfl_platform.report.reproduced import compared, draw, grid
    from pfl_platform.report.tables import Page
    from pfl_platform.store.atomic import write_atomic

    results = {name: running.results_of(out / name) for name in runs}
    rows = compared(list(results.values()))
    said = [*notes, *dict.fromkeys(note for result in results.values() for note in result.get("notes", ()))]
    shown = grid(rows, f"{table.title}, ours beside theirs" + (" (miniature)" if order.scale == "tiny" else ""), said)
    write_atomic(out / TABLE, [to_markdown(shown).encode()])
    draw(rows, out / PICTURE)
    about = {
        "table": table.title,
        "recipe": table.file.stem,
        "summary": table.summary,
        "citation": table.citation,
        "scale": order.scale,
        "notes": list(said),
    }
    found = manifests.write(out, about, results, rows)
    if order.json:
        print_json(found)
        return
    console().print(Page(shown))
    console().print(f"Also {out / TABLE}, {out / PICTURE} and {out / manifests.FILE}.", soft_wrap=True)


def remarks(table: Table, request: Request, order: Order) -> list[str]:
    """What a reader of the table must know: the recipe's note, and of a miniature by how much it is one."""
    found = [f"{table.title}: {table.citation}", *([table.note] if table.note else [])]
    if request.tiny:
        found.append(
            "A MINIATURE: the same rows on tiny backbones and little data. It shows that every row runs; its numbers "
            f"say nothing of the paper's. Cut: {'; '.join(cuts(request, order.rows))}."
        )
    return found


def cuts(request: Request, rows: Sequence[str] = ()) -> list[str]:
    """By how much a miniature is smaller than the table, over its rows."""
    resolver = Resolver(PluginManager(), outlined=True)
    full = replace(request, tiny=False, options={}, sets=())
    known, wanted = resolver.rows(full), list(rows) or resolver.rows(request)
    pairs = [
        (resolver.resolve(replace(full, row=row)), resolver.resolve(replace(request, row=row)))
        for row in (wanted or [None])  # type: ignore[list-item]
        if row is None or row in known
    ]
    found = []
    for what in MEASURES:
        spans = [
            {measure(config, resolver.benchmark(config.benchmark.model_dump()), what) for config in side}
            for side in zip(*pairs, strict=True)
        ]
        if spans and spans[0] != spans[1]:
            found.append(f"{what} {_span(spans[0])} to {_span(spans[1])}")
    return found or ["nothing"]


MEASURES = ("benchmark", "backbones", "rounds", "local steps", "local epochs", "train samples of a client",
            "test questions of a client", "combinations that are tried")  # fmt: skip


def measure(config: RunConfig, benchmark: Benchmark, what: str) -> Any:
    """One measure of a run's size."""
    from pfl_platform.federation.setup import assign
    from pfl_platform.tuning import candidates

    clients = benchmark.clients
    items = config.evaluation.items
    match what:
        case "benchmark":
            return config.benchmark.options.get("stand_in") or config.benchmark.name
        case "backbones":
            return ", ".join(sorted(set(assign(config, benchmark).values())))
        case "rounds":
            return config.rounds
        case "local steps":
            return 0 if config.local_epochs else config.local_steps
        case "local epochs":
            return config.local_epochs
        case "train samples of a client":
            return sum(client.num_examples for client in clients) // len(clients)
        case "test questions of a client":
            sizes = [len(task.test) for client in clients for task in client.tasks]
            return sum(min(size, items or size) for size in sizes) // len(clients)
        case _:
            return max(1, len(candidates(config)))


def _span(values: set[Any]) -> str:
    if all(isinstance(value, int) for value in values) and len(values) > 1:
        return f"{min(values):,}-{max(values):,}"
    return " / ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in sorted(values))
