"""`show RUN`: a run's settings and results, and who helped whom in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pfl_platform.cli import running
from pfl_platform.cli.output import Form, console, print_json
from pfl_platform.cli.plans import has_plan
from pfl_platform.errors import UserError
from pfl_platform.settings import read


def _neighbour(folder: Path) -> dict[str, Any] | None:
    """The results of a folder that lies near, whoever it belongs to; None where they cannot be read."""
    try:
        return running.results_of(folder)
    except UserError:
        return None


def show_helped(folder: Path, alone: Path | None, as_json: bool) -> None:
    """Prints who helped whom in a finished run; leaves all rounds and a picture in its folder."""
    from pfl_platform.report import helped
    from pfl_platform.report.tables import Page
    from pfl_platform.store.run_folder import RunFolder

    if not running.is_run(folder) or not (folder / "results.json").is_file():
        raise UserError(f"The folder {folder} holds no finished run, of which one could tell who helped whom.")
    results = running.results_of(folder)
    if alone is not None:
        others = [running.results_of(run) for run in running.finished(alone)]
    else:
        above = folder.absolute().parent
        beside = (*above.glob("*/results.json"), *above.parent.glob("*/*/results.json"))
        others = [found for file in sorted(beside) if (found := _neighbour(file.parent)) is not None]
    base = helped.without_sharing(results, others)
    if alone is not None and base is None:
        raise UserError(f"No run in {alone} shared nothing on the same benchmark, clients and seed as {folder}.")
    run = RunFolder(folder)
    found = helped.helped(results, run.rounds(), base)
    run.write_extra("who-helped-whom.json", found)
    picture = folder / "who-helped-whom.png"
    helped.draw(found, picture)
    if as_json:
        print_json(found)
        return
    for number, matrix in found["rounds"].items():
        console().print(Page(helped.helped_grid(found, f"Round {number}", matrix)))
    if len(found["rounds"]) > 1:
        console().print(Page(helped.helped_grid(found, "Mean over rounds", found["mean"])))
    console().print(f"As a picture: {picture}")


def show(folder: Path, form: Form = "screen") -> None:
    """Prints the configuration and, as far as there are any, the results of a run."""
    if has_plan(folder):
        running.compare([folder], form)
        return
    if not running.is_run(folder):
        raise UserError(f"The folder {folder} holds no run: it has no run.json.")
    config = read(folder / "config.yaml")
    done = (folder / "results.json").is_file()
    results = running.results_of(folder) if done else None
    if form == "json":
        print_json({"config": config, "results": results})
        return
    if form == "markdown" and results is not None:
        running.print_results([results], form)
        return
    print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100))
    if results is None:
        print(f"Not finished; go on with: pfl-platform resume {folder}")
    else:
        running.print_results([results])
