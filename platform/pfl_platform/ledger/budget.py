"""Budgets: methods that are compared get the local steps, or rounds, with which they cost the same as the first.

    steps     every method has the same local steps.
    flops     local steps are solved so that FLOPs of the whole run match: what clients train and measure, and what the
              server trains in the rounds.
    seconds   the same for seconds of training, of this machine.
    bytes     what is sent does not depend on local steps, so the rounds are solved, and the local steps of a round with
              them so that their total over the run stays as it is: a client's stream is addressed by the total step, so
              every method learns from the same stream, and they differ in how often they talk. Evaluations are moved to
              the same shares of the run.
    a table   local steps as somebody published them, in proportion to the first method's; see `pfl_platform.budgets`.

The first method runs as it was configured, and its cost is what is asked of the others. Numbers are rounded to the
nearest whole one. A method that cannot run once for the price is refused. What happens before round 0 (an alignment,
features) is taken off its FLOPs, seconds or bytes; answering test questions is in no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pfl_platform.budgets import Quantity
from pfl_platform.config import LARGEST, Budget, RunConfig
from pfl_platform.errors import UserError
from pfl_platform.ledger.probe import Probe
from pfl_platform.report.units import amount_text

SLACK = 0.05
"""How far the smallest number may exceed what is asked: prices of two methods that cost the same may differ so much."""


@dataclass(frozen=True)
class Asked:
    """What all methods are held to. name: what the user asked for. amount: the cost of the run of `config`, the first
    method's. steps: local steps of a round by method, where a table gives them."""

    name: str
    quantity: Quantity
    config: RunConfig
    amount: float
    steps: Mapping[str, int]


def asked(name: str, quantity: Quantity, probe: Probe, config: RunConfig, steps: Mapping[str, int]) -> Asked:
    """What the first method's run costs. Raises `UserError` when that is nothing."""
    found = probe.cost(quantity, config.rounds, steps.get(config.method, config.local_steps))
    if found <= 0:
        raise UserError(
            f"A run of '{called(config)}' takes no {quantity}, so there is nothing to hold the others to; name another "
            "method first, or another budget."
        )
    return Asked(name, quantity, config, found, steps)


def solved(budget: Asked, probe: Probe, config: RunConfig) -> RunConfig:
    """A method's configuration with the rounds and local steps that cost what is asked, and with its `budget`.

    Raises `UserError` when there are none.
    """
    quantity, first = budget.quantity, budget.config
    rounds, steps = config.rounds, config.local_steps
    if budget.name != quantity:
        steps = max(1, round(budget.steps[config.method] * first.rounds / rounds))
    elif config != first and quantity == "steps":
        steps = max(1, round(first.rounds * first.local_steps / rounds))
    elif config != first and quantity == "bytes":
        rounds = _rounds(budget, probe, config)
        steps = max(1, round(first.rounds * first.local_steps / rounds))
    elif config != first:
        steps = _steps(budget, probe, config)
    try:
        probe.check(rounds, steps)
    except UserError as error:
        raise UserError(f"The budget leaves '{called(config)}' {_size(rounds, steps)}: {error}") from error
    expected = probe.cost(quantity, rounds, steps)
    more = (probe.cost(quantity, rounds, 2 * steps) - expected) / (rounds * steps)
    frozen = Budget(
        name=budget.name,
        quantity=quantity,
        method=called(first),
        asked=budget.amount,
        expected=expected,
        per_step=more,
        per_round=(expected - probe.before(quantity)) / rounds - steps * more,
    )
    return with_budget(config, frozen, rounds, steps)


def with_budget(config: RunConfig, budget: Budget, rounds: int, local_steps: int) -> RunConfig:
    """A configuration under a budget. Evaluations keep their shares of the run where the rounds change."""
    every = max(1, round(config.evaluation.every * rounds / config.rounds))
    evaluation = config.evaluation.model_copy(update={"every": every})
    changed = {"budget": budget, "rounds": rounds, "local_steps": local_steps, "evaluation": evaluation}
    return config.model_copy(update=changed)


def called(config: RunConfig) -> str:
    """What sentences call a run: a row by its name, else its method."""
    return config.label or config.method


def _steps(budget: Asked, probe: Probe, config: RunConfig) -> int:
    def cost(steps: int) -> float:
        return probe.cost(budget.quantity, config.rounds, steps)

    if cost(1) > budget.amount * (1 + SLACK):
        raise UserError(
            f"With a single local step per round '{called(config)}' already takes "
            f"{amount_text(cost(1), budget.quantity)}, more than the budget, which is what '{called(budget.config)}' "
            f"takes: {amount_text(budget.amount, budget.quantity)}; give that one more local steps, or leave "
            f"'{called(config)}' out."
        )
    found = nearest_number(cost, budget.amount, budget.config.local_steps)
    if found is None:
        raise UserError(
            f"The {budget.quantity} of '{called(config)}' do not grow with its local steps, so they cannot be matched; "
            "leave it out, or choose another budget."
        )
    return found


def _rounds(budget: Asked, probe: Probe, config: RunConfig) -> int:
    total = budget.config.rounds * budget.config.local_steps

    def cost(rounds: int) -> float:
        return probe.cost(budget.quantity, rounds, max(1, round(total / rounds)))

    if cost(config.rounds) <= 0:
        raise UserError(
            f"'{called(config)}' sends nothing, so no number of rounds gives it the bytes of "
            f"'{called(budget.config)}'; leave it out, or choose another budget."
        )
    if cost(1) > budget.amount * (1 + SLACK):
        raise UserError(
            f"With a single round '{called(config)}' already sends {amount_text(cost(1), 'bytes')}, more than the "
            f"budget, which is what '{called(budget.config)}' sends: {amount_text(budget.amount, 'bytes')}; give that "
            f"one more rounds, or leave '{called(config)}' out."
        )
    found = nearest_number(cost, budget.amount, config.rounds, most=total)
    if found is None:
        raise UserError(
            f"'{called(config)}' would not send the bytes of '{called(budget.config)}', "
            f"{amount_text(budget.amount, 'bytes')}, even if each of its {total} local steps were a round; leave it "
            "out, or choose another budget."
        )
    return found


def nearest_number(cost: Callable[[int], float], asked: float, start: int, most: int = LARGEST) -> int | None:
    """The whole number from 1 to `most` whose cost is nearest to what is asked, the smaller of two; `cost` does not
    fall. None when all cost clearly less.

    >>> nearest_number(lambda steps: 30 + 20 * steps, 1_035, start=100)   # 30 per round beside, 20 per step
    50
    >>> nearest_number(lambda steps: 7.0, 1_000, start=10) is None
    True
    """
    known: dict[int, float] = {}

    def at(number: int) -> float:
        if number not in known:
            known[number] = cost(number)
        return known[number]

    low, high = 1, min(max(2, start), most)
    if at(low) >= asked:
        return low
    while at(high) < asked:
        if high == most or high >= 1000 * max(2, start):
            return most if high == most and at(most) >= asked * (1 - SLACK) else None
        low, high = high, min(2 * high, most)
    straight = True  # costs are nearly linear; halving now and then, because they have stairs
    while high - low > 1:
        share = (asked - at(low)) / (at(high) - at(low)) if straight else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        low, high = (middle, high) if at(middle) < asked else (low, middle)
        straight = not straight
    return low if asked - at(low) <= at(high) - asked else high


def _size(rounds: int, steps: int) -> str:
    return f"{rounds} round{'' if rounds == 1 else 's'} of {steps} local step{'' if steps == 1 else 's'}"
