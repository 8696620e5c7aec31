"""`evaluate RUN`: more of a finished run's evaluation matrix; `show RUN --errors`: what its models answered wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfl_platform.cli.output import Form, console, note, print_json, print_rows
from pfl_platform.data import IMAGE_MARK
from pfl_platform.errors import UserError


def evaluate(run: Path, others: bool, unseen: bool, items: int | None, form: Form, quiet: bool) -> None:
    """Scores what is missing, then prints the results as `show` does."""
    from pfl_platform.cli.running import print_results
    from pfl_platform.federation.filling import Wanted, fill

    say = (lambda _: None) if quiet or form == "json" else note
    results = fill(run, Wanted(others, unseen, items), say=say)
    if form == "json":
        print_json(results)
    else:
        print_results([results], form)


def zero_shot(name: str, tasks: Sequence[str], items: int | None, as_json: bool) -> None:
    """Prints what a bare backbone scores on tasks of the harness, without examples."""
    from pfl_platform.adapters.host import Host
    from pfl_platform.evaluation.harness import require
    from pfl_platform.evaluation.harness import zero_shot as scored
    from pfl_platform.plugins import PluginManager

    if not tasks:
        raise UserError("Name the tasks with --task: a name that lm-eval knows, or a YAML file in its form.")
    if items is not None and items < 0:
        raise UserError(f"--items is a number of questions per task, or 0 for all; {items} is neither.")
    require()
    host = Host(PluginManager().make("backbone", name, {}))
    found = scored(host, tasks, limit=items or None, shots=0, batch_size=32, seed=0)
    if as_json:
        print_json({"backbone": name, "tasks": found})
        return
    rows = [
        {"task": task, "metric": metric, "value": f"{value:.4f}"}
        for task, scores in found.items()
        for metric, value in scores.items()
    ]
    print_rows(rows, ["task", "metric", "value"])


def errors(run: Path, client: str | None, task: str | None, limit: int, as_json: bool) -> None:
    """Prints the first mistakes, and writes them with their pictures into `errors.html` in the run folder."""
    from pfl_platform.plugins import PluginManager
    from pfl_platform.report.mistakes import mistakes, page
    from pfl_platform.store.atomic import write_atomic
    from pfl_platform.store.run_folder import RunFolder

    if limit < 1:
        raise UserError(f"--limit is how many mistakes are shown, at least 1; {limit} is not.")
    folder = RunFolder.open(run)
    config = folder.config
    benchmark = PluginManager().make("benchmark", config.benchmark.name, config.benchmark.options)
    if folder.pins.get("benchmark") != benchmark.digest():
        raise UserError(
            f"The data are not those that the run {run} began with, so its mistakes cannot be told from them."
        )
    found = list(mistakes(run, benchmark, config.evaluation.split, client=client, task=task))
    shown = found[:limit]
    if as_json:
        print_json([item.row() for item in shown])
        return
    if not found:
        console().print("No mistakes: every prediction has the full score.")
        return
    rows = [
        {
            "cell": item.cell if item.cell.startswith(f"{item.client}:") else f"{item.client} on {item.cell}",
            "question": " / ".join(line for line in item.question.splitlines() if line != IMAGE_MARK),
            "wanted": " | ".join(item.sample.gold),
            "said": item.said,
            "score": f"{item.score:.2f}",
        }
        for item in shown
    ]
    print_rows(rows, ["cell", "question", "wanted", "said", "score"])
    file = run / "errors.html"
    title = f"{len(shown)} of {len(found)} mistakes of {config.method} on {benchmark.name}, seed {config.seed}"
    write_atomic(file, [page(shown, title).encode()])
    console().print(f"\n{title}. With their pictures: {file}", soft_wrap=True)
