"""A benchmark as `show` has it: who has which tasks, and what is asked in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pfl_platform.cli.output import console
from pfl_platform.data import Benchmark, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.plugins import Plugin, PluginManager

LONGEST = 160
"""Characters of a question or answer that are shown."""


def of_benchmark(plugin: Plugin, manager: PluginManager) -> dict[str, Any]:
    """The clients with their tasks (`tree`) and a first sample of each task (`samples`), with the benchmark's default
    options. Where its files are not there: why (`data`), and the tasks that its card names."""
    try:
        benchmark: Benchmark = manager.make("benchmark", plugin.name, {})
    except UserError as error:
        named: Mapping[str, list[str]] = plugin.about.get("clients") or {}
        tree = [{"client": client, "backbone": "", "task": task} for client, tasks in named.items() for task in tasks]
        return {"tree": tree, "samples": [], "data": str(error)}
    tree = [
        {"client": client.client_id, "backbone": client.backbone, **_task(task)}
        for client in benchmark.clients
        for task in client.tasks
    ]
    tree += [{"client": "", "backbone": "", **_task(task)} for task in benchmark.unseen]
    return {"tree": tree, "samples": [_sample(task) for task in _tasks(benchmark)]}


def _tasks(benchmark: Benchmark) -> Iterator[TaskData]:
    """All tasks, each name once."""
    seen: set[str] = set()
    for task in (*(task for client in benchmark.clients for task in client.tasks), *benchmark.unseen):
        if task.name not in seen:
            seen.add(task.name)
            yield task


def _task(task: TaskData) -> dict[str, Any]:
    sizes = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
    return {"task": task.name, "group": task.group, "kind": task.kind, "metric": task.metric, **sizes}


def _sample(task: TaskData) -> dict[str, Any]:
    sample: Sample = (task.train or task.test)[0]
    turn = sample.turns[0]
    return {
        "task": task.name,
        "id": sample.id,
        "pictures": len(sample.pictures),
        "question": turn.human,
        "answer": turn.answer,
    }


def print_sheet(card: Mapping[str, Any]) -> None:
    """A line per client, its tasks below it, and a sheet of samples."""
    screen = console(width=1000)

    def say(text: str, bold: bool = False) -> None:
        screen.print(text, style="bold" if bold else None, markup=False, highlight=False)

    say("clients", bold=True)
    if card.get("data"):
        say(f"  as published; {card['data']}")
    before = None
    for row in card["tree"]:
        backbone = f" ({row['backbone']})" if row["backbone"] else ""
        if (owner := row["client"]) != before:
            say(f"  {owner}{backbone}" if owner else "  unseen by all")
            before = owner
        if "kind" not in row:
            say(f"    {row['task']}")
            continue
        sizes = "/".join(str(row[part]) for part in ("train", "validation", "test"))
        group = f", {row['group']}" if row["group"] else ""
        say(f"    {row['task']}: {row['kind']}, {row['metric']}, {sizes} train/validation/test{group}")
    if card["samples"]:
        say("samples", bold=True)
    for row in card["samples"]:
        seen = f" [{row['pictures']} pictures]" if row["pictures"] else ""
        say(f"  {row['task']}{seen}: {_short(row['question'])} -> {_short(row['answer'])}")


def _short(text: str) -> str:
    """A text on one line, cut in its middle: what is asked stands at the end.

    >>> _short("one\\ntwo")
    'one two'
    """
    line = " ".join(text.split())
    half = (LONGEST - 5) // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"
