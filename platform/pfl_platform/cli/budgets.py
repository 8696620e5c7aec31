"""`run --compare ... --budget NAME`: solves rounds and local steps of every method before any run begins.

Nothing is written here: what was solved goes into the plan, from which runs start and are resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pfl_platform.budgets import Quantity, Table, find
from pfl_platform.cli.output import note
from pfl_platform.cli.plans import Plan, firsts
from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.report.units import amount_text, percent_text

if TYPE_CHECKING:
    from pfl_platform.ledger.probe import Probe

SOLVED = ("rounds", "local_steps", "local_epochs", "training.batch_size", "evaluation.every")
"""Settings that have one value under a budget: it solves them, or its prices hold for one value alone."""


def checked(runs: Plan, name: str | None) -> Plan:
    """The plan, as far as its budget can be right before anything is measured. Raises `UserError` where it cannot."""
    if name is None:
        return runs
    budget = find(name)
    configs = [runs[place] for place in dict.fromkeys(firsts(runs).values())]
    if len(configs) < 2:
        raise UserError(
            "--budget holds runs to each other's cost; name other methods with --compare, or rows with --row."
        )
    for config in configs:
        if tuned := [key for key in SOLVED if key in (config.tune or {})]:
            raise UserError(f"The setting '{tuned[0]}' cannot be tuned under a budget; leave out --budget or --tune.")
        if config.local_epochs and budget != "steps":
            raise UserError(
                f"The budget '{name}' is solved in local steps, and these runs count in local epochs; set "
                "local_epochs=0 and local_steps, or leave out --budget."
            )
    if isinstance(budget, Table):
        _published(budget, configs)
    return runs


def foreseen(runs: Plan, name: str | None) -> Plan:
    """The plan for `--print-config`, which measures nothing: solved where a table or equal steps say it all."""
    if name is None or name == "steps" or isinstance(find(name), Table):
        return solved(runs, name, quiet=True)
    note(f"The budget of {name} is solved when the runs start; rounds and local steps are those that were asked for.")
    return runs


def solved(runs: Plan, name: str | None, quiet: bool) -> Plan:
    """The plan with the rounds and local steps that its budget leaves each method, or row of a recipe: one solution for
    all seeds.

    Each is measured once, on the clients of the first seed; see `pfl_platform.ledger.probe`. Raises `UserError` for one
    that cannot keep the budget.
    """
    if name is None:
        return runs
    from pfl_platform.ledger import budget as ledger

    chosen, like = find(name), firsts(runs)
    configs = {place: runs[place] for place in like.values()}
    table = _published(chosen, [*configs.values()]) if isinstance(chosen, Table) else {}
    quantity: Quantity = "steps" if isinstance(chosen, Table) else chosen
    found: dict[str, RunConfig] = {}
    asked: ledger.Asked | None = None
    for number, (place, config) in enumerate(configs.items(), 1):
        if quantity != "steps" and not quiet:
            note(f"budget of {quantity}: measuring {ledger.called(config)} ({number} of {len(configs)})")
        with _probe(config, measured=quantity != "steps") as probe:
            if asked is None:
                asked = ledger.asked(name, quantity, probe, config, table)
            found[place] = ledger.solved(asked, probe, config)
        if not quiet:
            note(_sentence(ledger.called(config), found[place]))
    return {place: _like(found[like[place]], config) for place, config in runs.items()}


def _published(table: Table, configs: Sequence[RunConfig]) -> dict[str, int]:
    """Local steps by method. Raises `UserError` where two runs are of one method: a table has one number for both."""
    methods = [config.method for config in configs]
    if twice := [method for method in methods if methods.count(method) > 1]:
        raise UserError(
            f"The budget '{table.name}' has one number of local steps for '{twice[0]}', of which these are several "
            "rows; choose a budget that is measured, such as flops."
        )
    return table.of(methods, configs[0].method, configs[0].local_steps)


def _like(solution: RunConfig, config: RunConfig) -> RunConfig:
    """A run of another seed, with the solution."""
    same = {key: getattr(solution, key) for key in ("budget", "rounds", "local_steps", "evaluation")}
    return config.model_copy(update=same)


@contextmanager
def _probe(config: RunConfig, measured: bool) -> Iterator[Probe]:
    from pfl_platform.federation.session import numerics, pinned
    from pfl_platform.federation.setup import build
    from pfl_platform.ledger.probe import Probe, probing
    from pfl_platform.store.memory import MemoryStore

    config = pinned(config)
    setup = build(config, PluginManager())
    if not measured:
        yield Probe(setup.federation(MemoryStore()), setup.parts)
        return
    with numerics(config), probing(setup) as probe:
        yield probe


def _sentence(what: str, config: RunConfig) -> str:
    given = config.budget
    assert given is not None
    per_step = amount_text(given.per_step, given.quantity)
    per_round = amount_text(max(0.0, given.per_round), given.quantity)
    prices = "" if given.quantity == "steps" else f"; {per_step} per local step, {per_round} per round beside"
    return (
        f"budget of {what}: {config.rounds} x {config.local_steps} local steps, "
        f"{amount_text(given.expected, given.quantity)} of {amount_text(given.asked, given.quantity)} "
        f"({percent_text(100 * (given.expected / given.asked - 1))}){prices}"
    )
