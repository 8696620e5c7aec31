"""The tables that a run is reported in, as text cells; `tables` and `markdown` put them on a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from pfl_platform.evaluation.comparison import summarise
from pfl_platform.evaluation.matrix import KINDS, mean
from pfl_platform.report.units import amount_text, byte_text, counted, percent_text, score_text, spread_text, time_text
from pfl_platform.tuning import label

Results: TypeAlias = Mapping[str, Any]
"""Content of a `results.json`."""

Part: TypeAlias = Literal["key", "scores", "costs"]
"""Key columns say what a row is; they are repeated when a narrow screen shows a grid in pieces."""


MANY = 60
"""A screen shows all clients of a run up to so many."""


@dataclass(frozen=True)
class Column:
    """One column: its part of the grid, the head in two lines (a group, a name), and its cells."""

    part: Part
    head: tuple[str, str]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table. The last `footers` cells of every column sum up those above them."""

    title: str
    columns: tuple[Column, ...]
    footers: int
    notes: tuple[str, ...]

    def of(self, part: Part) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.part == part)

    @property
    def height(self) -> int:
        return len(self.columns[0].cells)


def client_grid(results: Results) -> Grid:
    """One run: a row per client, then the mean and the lowest value of each column."""
    clients: Mapping[str, Any] = results["clients"]
    summary, cost = results["summary"], results["cost"]

    def scores(kind: str, value: str, name: str) -> Column:
        sign = value == "gain"
        cells = [score_text(entry[kind][value], sign=sign) for entry in clients.values()]
        footer = [score_text(summary[kind][value][name], sign=sign) for name in ("mean", "min")]
        return Column("scores", (kind.capitalize(), name), (*cells, *footer))

    def costs(head: tuple[str, str], field: str, text: Callable[[float | None], str]) -> Column:
        cells = [text(entry["cost"][field]) for entry in clients.values()]
        return Column("costs", head, (*cells, text(cost[field] / max(1, len(clients))), ""))

    columns = (
        Column("key", ("", "client"), (*clients, "mean", "minimum")),
        Column("key", ("", "backbone"), (*(entry["backbone"] for entry in clients.values()), "", "")),
        scores("self", "last", "A_last"),
        scores("self", "auc", "A_AUC"),
        scores("self", "baseline", "start"),
        scores("self", "gain", "gain"),
        *_published(results),
        *(scores(*choice) for choice in _beyond_self(summary[kind]["last"]["mean"] for kind in KINDS)),
        costs(("bytes", "up"), "up_payload", byte_text),
        costs(("bytes", "down"), "down_payload", byte_text),
        costs(("", "time"), "seconds", time_text),
    )
    self_last = summary["self"]["last"]
    rounds = ", ".join(str(number) for number in results["evaluated"])
    word = "round" if len(results["evaluated"]) == 1 else "rounds"
    notes: tuple[str, ...] = (
        f"A_last: after the last round. A_AUC: mean over the evaluations after {word} {rounds}. Start: no training.",
        f"Self A_last: lowest at {self_last['min_client'] or '-'}; standard deviation over clients "
        f"{score_text(self_last['std'])}. Time of all clients: {time_text(cost['seconds'])}.",
        f"Bytes: payload over the whole run; all clients {byte_text(cost['up_payload'])} up and "
        f"{byte_text(cost['down_payload'])} down, serialised {byte_text(cost['up_wire'])} and "
        f"{byte_text(cost['down_wire'])}.",
    )
    notes += _forgotten(results) + tuned(results) + held(results) + tuple(results.get("notes", ()))
    epochs = results["config"].get("local_epochs", 0)
    amount = counted(epochs, "local epoch") if epochs else counted(results["local_steps"], "local step")
    title = (
        f"{results['method']} on {results['benchmark']}, seed {results['seed']}: "
        f"{counted(results['rounds'], 'round')} of {amount}"
    )
    return Grid(title, columns, 2, notes)


def excerpt(grid: Grid, results: Results) -> Grid:
    """The grid of one run as a screen shows it: of very many clients those with the lowest and the highest Self."""
    last = [entry["self"]["last"] for entry in results["clients"].values()]
    if len(last) <= MANY:
        return grid
    ranked = sorted(range(len(last)), key=lambda row: (last[row] is not None, last[row] or 0.0))
    rows = sorted({*ranked[: MANY // 4], *ranked[-(MANY // 4) :]}) + list(range(len(last), grid.height))
    columns = tuple(replace(column, cells=tuple(column.cells[row] for row in rows)) for column in grid.columns)
    note = (
        f"Of {len(last):,} clients, the {MANY // 4} with the lowest Self A_last and the {MANY // 4} with the highest "
        "are shown; Markdown and results.json have all. The mean, the minimum and the costs are of all."
    )
    return replace(grid, columns=columns, notes=(note, *grid.notes))


def _forgotten(results: Results) -> tuple[str, ...]:
    """What was lost of clients' own tasks, where there was an earlier point."""
    found = results["summary"].get("forgetting", {})  # older results lack it
    if found.get("mean") is None:
        return ()
    lost = {client: entry["forgetting"] for client, entry in results["clients"].items()}
    most = max((client for client in lost if lost[client] is not None), key=lambda client: lost[client])
    return (
        f"Forgetting (best earlier score of a task minus its last): {score_text(found['mean'])}, most at {most} "
        f"({score_text(lost[most])}).",
    )


def _published(results: Results) -> tuple[Column, ...]:
    """What a paper reports of each client, by its name or that of its only task."""
    given: Mapping[str, float] = results["config"].get("published") or {}
    if not given:
        return ()
    cells = []
    for client, entry in results["clients"].items():
        own = [key.partition(":")[2] for key in entry["tasks"] if key.startswith(f"{client}:")]
        cells.append(score_text(given.get(client, given.get(own[0]) if len(own) == 1 else None)))
    return (Column("scores", ("Self", "published"), (*cells, score_text(given.get("mean")), "")),)


def tuned(results: Results) -> tuple[str, ...]:
    """What was chosen on validation samples, and the score of everything that was tried."""
    found = results.get("tuning")
    if not found:
        return ()
    scores = "; ".join(f"{label(item['values'])}: {score_text(item['score'])}" for item in found["candidates"])
    seconds = sum(item["cost"]["seconds"] for item in found["candidates"])
    return (
        f"Tuned on validation samples, by {found['how']}: {label(found['chosen'])}. Tried: {scores}. It took "
        f"{time_text(seconds)} more.",
    )


def held(results: Results) -> tuple[str, ...]:
    """The budget of a run: asked and reached."""
    found = results.get("budget")
    if not found:
        return ()
    quantity = found["quantity"]
    before = f" Of these {amount_text(found['before'], quantity)} before round 0." if found["before"] else ""
    return (
        f"Budget '{found['name']}', from '{found['method']}': {quantity} asked "
        f"{amount_text(found['asked'], quantity)}, reached {amount_text(found['reached'], quantity)} "
        f"({percent_text(found['deviation'])}).{before}",
    )


def compare_grid(results: Sequence[Results]) -> Grid:
    """Several runs: a row per method (or setting), with mean and deviation over its seeds."""
    groups = summarise(results)

    def scores(kind: str, value: str, name: str) -> Column:
        found = [group[kind][value] for group in groups]
        cells = [spread_text(item["mean"], item["std"], sign=value == "gain") for item in found]
        return Column("scores", (kind.capitalize(), name), tuple(cells))

    def costs(head: tuple[str, str], field: str, text: Callable[[float | None], str]) -> Column:
        return Column("costs", head, tuple(text(_per_client(group, field)) for group in groups))

    reported = tuple(score_text(group["published"]) for group in groups)
    lowest = tuple(spread_text(group["min"]["mean"], group["min"]["std"]) for group in groups)
    columns = (
        Column("key", ("", "method"), tuple(group["label"] for group in groups)),
        Column("key", ("", "seeds"), tuple(str(len(group["seeds"])) for group in groups)),
        scores("self", "last", "A_last"),
        scores("self", "auc", "A_AUC"),
        Column("scores", ("Self", "minimum"), lowest),
        scores("self", "gain", "gain"),
        *([Column("scores", ("Self", "published"), reported)] if any(cell != "-" for cell in reported) else ()),
        *(scores(*choice) for choice in _beyond_self(mean(g[kind]["last"]["mean"] for g in groups) for kind in KINDS)),
        costs(("bytes", "up"), "up_payload", byte_text),
        costs(("bytes", "down"), "down_payload", byte_text),
        costs(("", "time"), "seconds", time_text),
        *_budgets(groups),
    )
    seeds = sorted({seed for group in groups for seed in group["seeds"]})
    notes: tuple[str, ...] = (
        f"Means over clients, then mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}.",
        "Minimum: A_last of the lowest client. Gain: A_last over no training. Bytes (payload) and time: per client.",
    )
    notes += _lost(groups) + _of_budgets(groups)
    benchmarks = dict.fromkeys(group["benchmark"] for group in groups)
    return Grid(f"{counted(len(results), 'run')} on {', '.join(benchmarks)}", columns, 0, notes)


def _lost(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    found = [
        f"{group['label']} {spread_text(group['forgetting']['mean'], group['forgetting']['std'])}"
        for group in groups
        if group["forgetting"]["mean"] is not None
    ]
    return (f"Forgetting (best earlier score of a task minus its last): {', '.join(found)}.",) if found else ()


def _budgets(groups: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """What runs were given, and what they took: over what was asked, and over the run that the others are held to."""
    given = [group["budget"] for group in groups]
    if not any(given):
        return ()

    def column(head: tuple[str, str], text: Callable[[Mapping[str, Any]], str]) -> Column:
        return Column("costs", head, tuple("-" if item is None else text(item) for item in given))

    def beyond_first(item: Mapping[str, Any], quantity: str) -> str:
        firsts = [
            group["budget"]["spent"][quantity]
            for group in groups
            if group["method"] == item["method"] and group["budget"] and group["budget"]["asked"] == item["asked"]
        ]
        return percent_text(100 * (item["spent"][quantity] / firsts[0] - 1) if firsts and firsts[0] else None)

    flops = any(item["quantity"] != "flops" for item in given if item)
    return (
        column(("budget", "rounds x steps"), lambda item: f"{item['rounds']} x {item['local_steps']}"),
        column(("budget", "asked"), lambda item: amount_text(item["asked"], item["quantity"])),
        column(("budget", "reached"), lambda item: amount_text(item["reached"], item["quantity"])),
        column(("over", "asked"), lambda item: percent_text(100 * (item["reached"] / item["asked"] - 1))),
        column(("over", "first"), lambda item: beyond_first(item, item["quantity"])),
        *([column(("FLOPs", "over first"), lambda item: beyond_first(item, "flops"))] if flops else ()),
    )


def _of_budgets(groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the columns of budgets mean."""
    given = {(group["budget"]["name"], group["budget"]["method"]) for group in groups if group["budget"]}
    before = [
        f"{group['label']} {amount_text(group['budget']['before'], group['budget']['quantity'])}"
        for group in groups
        if group["budget"] and group["budget"]["before"]
    ]
    return tuple(
        f"Budget '{name}', of all clients over all rounds: asked is what '{method}' was measured to take beforehand, "
        "reached what the ledger of the finished run says."
        + (f" Of these before round 0: {', '.join(before)}." if before else "")
        for name, method in sorted(given)
    )


def _beyond_self(measured: Iterable[float | None]) -> list[tuple[str, str, str]]:
    """(kind, value, head) of Others and Unseen, where they were measured; Unseen is after the last round only."""
    shown = {kind for kind, value in zip(KINDS, measured, strict=True) if value is not None}
    wanted = (("others", "last", "A_last"), ("others", "auc", "A_AUC"), ("unseen", "last", "A_last"))
    return [choice for choice in wanted if choice[0] in shown]


def _per_client(group: Mapping[str, Any], field: str) -> float | None:
    total: float | None = group["cost"][field]["mean"]
    return None if total is None else total / max(1, group["clients"])
