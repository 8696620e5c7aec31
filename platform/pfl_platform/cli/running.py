"""`run`, `resume`, `compare` and `show RUN`: plans runs, carries them out one after the other, prints one table."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from pfl_platform.cli import budgets, launching
from pfl_platform.cli.launching import Ask
from pfl_platform.cli.output import Form, console, note, print_json
from pfl_platform.cli.plans import Plan, dumped, firsts, has_plan, read_plan, write_plan
from pfl_platform.config import RunConfig
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.settings import COMPONENTS, assignment

if TYPE_CHECKING:
    from pfl_platform.engines.carrier import Carrier
    from pfl_platform.federation.together import Together


class Interrupted(RunStopped):
    """A signal stopped a run. The exit code is the shell's convention: 128 + the signal's number."""

    def __init__(self, sentence: str, number: int) -> None:
        super().__init__(sentence)
        self.exit_code = 128 + number


class _Terminated(KeyboardInterrupt):
    """SIGTERM, taken like Ctrl-C."""


def names(text: str | None) -> list[str]:
    """The parts of `a,b`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def others(text: str | None) -> list[str]:
    """The methods that a run is compared with; none when nothing was given."""
    if text is not None and not names(text):
        raise UserError("--compare names no method; name some, separated by commas.")
    return names(text)


def numbers(text: str | None, option: str) -> list[int]:
    """The numbers in `0,1,2`, each once; none when nothing was given."""
    try:
        found = list(dict.fromkeys(int(part) for part in names(text)))
        if text is not None and not found:
            raise ValueError
        return found
    except ValueError:
        raise UserError(f"The value '{text}' of {option} is not a list of whole numbers such as 0,1,2.") from None


def public_name(value: str | None) -> str | None:
    """A public set's name as it is, a folder or file as an absolute path: a run may be resumed from elsewhere."""
    if value == "":
        raise UserError("The name of the public set is empty.")
    return str(Path(value).resolve()) if value is not None and (os.sep in value or Path(value).exists()) else value


def plan(
    request: Request,
    *,
    compare: Sequence[str] = (),
    seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    budget: str | None = None,
) -> Plan:
    """Every run that the user asked for, resolved; an error in any of them comes before the first starts. Of a recipe
    that is a table these are its rows, or those that `rows` names, each in a sub-folder."""
    resolver = Resolver(PluginManager())
    if rows and request.recipe is None:
        raise UserError("--row names rows of a recipe; name the recipe with --recipe.")
    wanted = list(dict.fromkeys(rows)) or resolver.rows(request)
    if not wanted:
        return budgets.checked(_plan(resolver, request, compare, seeds), budget)
    if compare:
        raise UserError("A recipe that is a table compares its own rows; leave out --compare.")
    result: Plan = {}
    for row in wanted:
        found = _plan(resolver, replace(request, row=row), (), seeds)
        own = re.sub(r"[^\w.=-]+", "-", row).strip("-.") or "row"
        folder = own if not any(name.partition("/")[0] == own for name in result) else f"{own}-{len(result)}"
        result |= {"/".join(part for part in (folder, name) if part): config for name, config in found.items()}
    return budgets.checked({"": next(iter(result.values()))} if len(result) == 1 else result, budget)


def _plan(resolver: Resolver, request: Request, compare: Sequence[str], seeds: Sequence[int]) -> Plan:
    result: Plan = {}
    requests: list[tuple[int | None, Request]] = [(None, request)]
    if seeds:
        if request.options.get("seed") is not None or any(assignment(text)[0] == "seed" for text in request.sets):
            raise UserError("Both --seeds and one seed are given; leave one of them out.")
        requests = [(seed, replace(request, options={**request.options, "seed": seed})) for seed in seeds]
    for seed, asked in requests:
        first = resolver.resolve(asked)
        launching.check_engine(first.engine)
        configs = [
            first,
            *(resolver.alongside(asked, first, name) for name in dict.fromkeys(compare) if name != first.method),
        ]
        for config in configs:
            parts = [config.method] if len(configs) > 1 else []
            result["/".join([*parts, *([f"seed{seed}"] if len(seeds) > 1 else [])])] = config
    return result


def print_plan(runs: Plan) -> None:
    """The configurations as YAML, a recipe again when there is one. Options are checked, data and weights are not."""
    manager = PluginManager()
    for config in runs.values():
        for kind in COMPONENTS:
            if (choice := getattr(config, kind)) is not None:
                manager.make(kind, choice.name, choice.options)
    values = dumped(runs)
    print(yaml.safe_dump(values.get("", values), sort_keys=False, allow_unicode=True, width=100), end="")


def start(
    runs: Plan,
    out: Path | None,
    quiet: bool,
    budget: str | None = None,
    ask: Ask | None = None,
    profile: bool = False,
) -> None:
    """Carries out a plan in a new folder; under a budget, which is solved first."""
    folder = out if out is not None else _new_folder(runs)

    def work(carrier: Carrier | None) -> None:
        together = _together(carrier)
        together.once(lambda: _refuse_used(folder))
        if "" in runs:
            _carry_out(runs, folder, quiet, carrier, profile=profile)
            return
        _check(runs)
        with _stoppable(folder):
            solved = together.once(lambda: dumped(budgets.solved(runs, budget, quiet)))
        settled = {name: RunConfig.model_validate(config) for name, config in solved.items()}
        together.once(lambda: write_plan(settled, folder))
        _carry_out(settled, folder, quiet, carrier, profile=profile)

    _refuse_used(folder)
    launching.carry_out(list(runs.values()), ask or Ask(()), folder, work)


def _refuse_used(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"The output folder {folder} is a file.")
    if folder.is_dir() and any(folder.iterdir()):
        there = has_plan(folder) or (folder / "run.json").is_file()
        go_on = f"go on with the run in it by `pfl-platform resume {folder}`, or " if there else ""
        raise UserError(f"The folder {folder} is not empty; {go_on}name another with --out.")


def _together(carrier: Carrier | None) -> Together:
    from pfl_platform.federation.together import Alone

    return Alone() if carrier is None else carrier.together


def _check(runs: Plan) -> None:
    """Builds what each run is made of and lets it go again, so that a misfit of the last shows before the first
    starts."""
    from pfl_platform.federation.setup import build
    from pfl_platform.ledger.fitting import refuse_weights

    for place in dict.fromkeys(firsts(runs).values()):  # a seed changes nothing that is checked
        build(runs[place], PluginManager(), before_loading=partial(refuse_weights, runs[place]))


def lay_out(runs: Plan, folder: Path) -> None:
    """Writes the plan of several runs into a new folder, after checking them all; `resume` carries it out."""
    _refuse_used(folder)
    _check(runs)
    write_plan(runs, folder)


def resume(folder: Path, quiet: bool, ask: Ask | None = None, show: bool = True, profile: bool = False) -> None:
    """Finishes what is unfinished in a run folder, or in a folder of several runs. show: print their results."""
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}.")
    if not has_plan(folder):
        from pfl_platform.store.run_folder import RunFolder

        def work(carrier: Carrier | None) -> None:
            with _stoppable(folder):
                from pfl_platform.federation import session

                results = session.resume(folder, quiet=quiet, carrier=carrier, profile=profile)
            if _together(carrier).leads:
                print_results([results])

        launching.carry_out([RunFolder.open(folder).config], ask or Ask(()), folder, work)
        return
    runs = read_plan(folder)
    launching.carry_out(
        list(runs.values()),
        ask or Ask(()),
        folder,
        lambda carrier: _carry_out(runs, folder, quiet, carrier, show, profile),
    )


def compare(folders: Sequence[Path], form: Form = "screen", plots: Path | None = None) -> None:
    """Prints the results of finished runs beside each other, and draws what they cost."""
    runs = [run for folder in folders for run in finished(folder)]
    results = [results_of(run) for run in runs]
    if plots is not None:
        _draw_tradeoffs(runs, results, plots)
    if form == "json":
        print_json(results)
    else:
        print_results(results, form)


def _draw_tradeoffs(runs: Sequence[Path], results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    from pfl_platform.report.tradeoffs import draw, of_run
    from pfl_platform.store.run_folder import RunFolder

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{item['method']} seed {item['seed']}" for item in results]
    labels = [name if names.count(name) == 1 else f"{name} ({run})" for name, run in zip(names, runs, strict=True)]
    found = {label: of_run(item, RunFolder(run)) for label, run, item in zip(labels, runs, results, strict=True)}
    for file in draw(found, folder):
        note(f"drawn: {file}")


def _carry_out(
    runs: Plan, folder: Path, quiet: bool, carrier: Carrier | None = None, show: bool = True, profile: bool = False
) -> None:
    results, together = [], _together(carrier)
    with _stoppable(folder, None if show else "give the same command again"):
        from pfl_platform.federation import session

        for name, config in runs.items():
            run = folder / name if name else folder
            ended = together.once(partial(_ended, run))
            if ended is not None:
                results.append(ended)
            elif together.once(partial(is_run, run)):
                results.append(session.resume(run, quiet=quiet, carrier=carrier, profile=profile))
            else:
                results.append(session.run(config, run, quiet=quiet, carrier=carrier, profile=profile))
    if not together.leads or not show:
        return
    print_results(results)
    print(f"The {'runs are' if len(runs) > 1 else 'run is'} in {folder}.")


def _ended(run: Path) -> dict[str, Any] | None:
    """The results of a run that has ended."""
    return results_of(run) if (run / "results.json").is_file() else None


@contextmanager
def _stoppable(folder: Path, how: str | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run cleanly, with a sentence that says how to go on (default: by `resume`)."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        kept = has_plan(folder) or is_run(folder)
        how = how or f"go on with: pfl-platform resume {folder}"
        then = f"finished tasks and rounds are kept; {how}" if kept else "nothing was kept"
        raise Interrupted(f"Stopped by {number.name}; {then}", number) from None
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _new_folder(runs: Plan) -> Path:
    """`runs/<method>-<benchmark>-seed<k>`, with a number when that is taken."""
    configs = list(runs.values())
    first = configs[0]
    methods = {config.method for config in configs}
    seeds = {config.seed for config in configs}
    benchmark = Path(str(first.benchmark.options.get("path") or first.benchmark.name)).name
    who = first.method if len(methods) == 1 else "compare"
    name = f"{who}-{benchmark}" + (f"-seed{first.seed}" if len(seeds) == 1 else "-seeds")
    folder, count = Path("runs", name), 1
    while folder.exists():
        count += 1
        folder = Path("runs", f"{name}-{count}")
    return folder


def finished(folder: Path) -> list[Path]:
    """The finished runs in a folder: itself, or those below it."""
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}.")
    if (folder / "results.json").is_file():
        return [folder]
    if is_run(folder):
        raise UserError(f"The run in {folder} is not finished; go on with: pfl-platform resume {folder}")
    begun = {file.parent for pattern in ("*/run.json", "*/*/run.json") for file in folder.glob(pattern)}
    if has_plan(folder):
        begun |= {folder / name for name in read_plan(folder)}
    if not begun:
        raise UserError(f"The folder {folder} holds no finished run.")
    for run in sorted(begun):
        if not (run / "results.json").is_file():
            again = folder if has_plan(folder) else run
            raise UserError(f"The run in {run} is not finished; go on with: pfl-platform resume {again}")
    return sorted(begun)


def is_run(folder: Path) -> bool:
    """Whether a run was begun here; see `pfl_platform.store.run_folder`."""
    return (folder / "run.json").is_file()


def results_of(run: Path) -> dict[str, Any]:
    file = run / "results.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The results {file} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"The results {file} are not those of a run.")
    _check_results(file, value)
    return value


def _check_results(file: Path, value: Mapping[str, Any]) -> None:
    """Whether tables can be made of the results."""
    from pfl_platform.report.tables import compare_table, results_table

    for part in ("config", "clients", "summary"):
        if not isinstance(value.get(part), Mapping):
            raise UserError(f"The file {file} has no '{part}': it was changed, or another program wrote it.")
    try:
        results_table(value)
        compare_table([value, value])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The file {file} was changed, or another program wrote it ({type(error).__name__}: {error})."
        ) from None


def print_results(results: Sequence[Mapping[str, Any]], form: Form = "screen") -> None:
    from pfl_platform.report.markdown import compare_markdown, results_markdown
    from pfl_platform.report.tables import compare_table, profile_table, results_table

    if form == "markdown":
        print(results_markdown(results[0]) if len(results) == 1 else compare_markdown(results), end="")
        return
    console().print(results_table(results[0]) if len(results) == 1 else compare_table(results))
    for result in results:
        if (profile := result.get("profile")) is not None:
            console().print(profile_table(profile))
