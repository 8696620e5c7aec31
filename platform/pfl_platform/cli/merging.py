"""`merge`: combines adapter folders by an aggregator's rule, shows a table, and draws how alike they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_platform.cli.output import console, print_json
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.report.units import counted
from pfl_platform.settings import assignment

if TYPE_CHECKING:
    from pfl_platform.adapters.merge import Job, Watch
    from pfl_platform.federation.merging import Merger


@dataclass(frozen=True)
class Order:
    """What the user asked for."""

    adapters: Sequence[Path]
    method: str
    out: Path
    options: Mapping[str, Any]
    settings: Sequence[str] = ()
    rank: int | None = None
    weights: str | None = None
    backbone: Path | None = None
    drop_bad: bool = False
    seed: int = 0
    threads: int | None = None


def merge(order: Order, *, json: bool, quiet: bool) -> None:
    merger = rule(order)
    job, notes = planned(order, merger)
    from pfl_platform.adapters.merge import REPORT, carry_out, check

    check(job)
    with bar(quiet or json) as watch:
        report = carry_out(job, watch)
    picture = job.out / "sar.png"
    draw(report["sar_between"], report["adapters"], picture)
    if json:
        print_json(report)
        return
    for note in notes:
        console().print(note)
    if not quiet:
        table(report)
    merged = counted(len(job.adapters), "adapter")
    console().print(f"Merged {merged} into {job.out} ({REPORT} and {picture.name} beside it).")


def rule(order: Order) -> Merger:
    """The merger of the aggregator that `--method` names, built with the options given."""
    options = {**order.options, **dict(assignment(text) for text in order.settings)}
    if order.backbone is not None and "space" not in options:
        options["space"] = "weight"
    aggregator = PluginManager().make("aggregator", order.method, options)
    merger: Merger | None = aggregator.merger
    if merger is None:
        raise UserError(f"'{order.method}' needs a federation around it; it is no rule that merges bare adapters.")
    return merger


def planned(order: Order, merger: Merger) -> tuple[Job, list[str]]:
    """Opens the adapters; says what was left out."""
    import torch

    from pfl_platform.adapters.folders import open_adapter
    from pfl_platform.adapters.merge import Job, without_bad
    from pfl_platform.naming import distinct

    if order.threads is not None:
        torch.set_num_threads(max(1, order.threads))
    if order.rank is not None and order.rank < 1:
        raise UserError(f"--rank must be at least 1, not {order.rank}.")
    given = [Path(path) for path in order.adapters]
    found = [open_adapter(path, name) for path, name in zip(given, distinct(given), strict=True)]
    shares = weights(order.weights, len(found))
    notes: list[str] = []
    if order.drop_bad:
        good, notes = without_bad(found)
        if not good:
            raise UserError("Every adapter holds NaN or infinity; there is nothing to merge.")
        shares = [share for share, adapter in zip(shares, found, strict=True) if adapter in good]
        found = good
    total = sum(shares)
    if total <= 0:
        raise UserError("The weights of the adapters that are left add up to 0.")
    if len(found) == 1:
        notes.append("Only one adapter was given: the rule is applied to it alone.")
    normalised = tuple(share / total for share in shares)
    return Job(tuple(found), merger, normalised, order.out, order.rank or 0, order.backbone, order.seed), notes


def weights(text: str | None, count: int) -> list[float]:
    """The numbers in `1,2,1`, or ones."""
    if text is None:
        return [1.0] * count
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"The value '{text}' of --weights is not a list of numbers such as 1,2,1.") from None
    if len(found) != count:
        raise UserError(f"--weights has {len(found)} numbers for {count} adapters.")
    if any(not 0 <= value < float("inf") for value in found):
        raise UserError(f"--weights holds a number that is negative or not finite: {text}.")
    return found


@contextmanager
def bar(hidden: bool) -> Iterator[Watch | None]:
    """A progress bar over the modules, on the screen only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console()
    if hidden or not screen.is_terminal:
        yield None
        return
    columns = (
        TextColumn("merging"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=None)

        def watch(done: int, total: int, module: str) -> None:
            progress.update(task, completed=done, total=total, description=module)

        yield watch


HEADINGS = {
    "module": "module",
    "rank": "rank",
    "energy": "energy kept",
    "norm_merged": "norm",
    "norm_inputs": "mean norm of inputs",
    "sign_agreement": "sign agreement",
    "sar_merged": "SAR with result",
}


def table(report: Mapping[str, Any]) -> None:
    """Module by module."""
    from rich.table import Table

    rows = report["modules"]
    shown = [key for key in HEADINGS if any(key in row for row in rows)]
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for key in shown:
        grid.add_column(HEADINGS[key], justify="left" if key == "module" else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(cell(row.get(key)) for key in shown))
    console().print(grid)


def cell(value: Any) -> str:
    if isinstance(value, list):
        value = sum(value) / len(value)
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(matrix: Sequence[Sequence[float]], names: Sequence[str], file: Path) -> None:
    """The SAR of every adapter (row) in the subspace of every other (column), as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    side = 2.2 + 0.55 * len(names)
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="viridis")
    axes.set_xticks(range(len(names)), labels=names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), labels=names, fontsize=8)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k")
    axes.set_title("Subspace alignment: rows in the subspace of columns", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(file)
