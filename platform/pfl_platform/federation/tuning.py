"""Choosing settings on validation samples, before test samples are looked at.

A candidate's score is the mean over clients of Self on validation samples, as the run's personalizer has it. There are
two ways to find it:

    whole runs   Each candidate is a run of its own, in `tuning/000` ... of the run's folder: preparation, all rounds,
                 one evaluation after the last. The run itself then starts anew with the best.
    replies      Where only the server's last reply depends on what is tuned, nobody trains twice: one round, the
                 personalizer scores the reply, and everything tuned is an option of an aggregator that asks clients for
                 no statistics and does nothing before the first reply. After the clients have trained, each candidate
                 absorbs their updates, its replies are scored, and the run ends with the best.

Both give the same choice where both can be used. The first of equal candidates is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.evaluation.matrix import mean, values_of
from pfl_platform.federation.cells import own_cells
from pfl_platform.federation.checks import check_components, check_equal_adapters
from pfl_platform.federation.components import Aggregator, Component, Federation
from pfl_platform.federation.rounds import Parts, Progress, absorbed, reply_task
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Outcome, Program
from pfl_platform.ledger.costs import total
from pfl_platform.plugins import PluginManager
from pfl_platform.store.memory import MemoryStore
from pfl_platform.tuning import Candidate


@dataclass(frozen=True)
class Scored:
    """What came of a candidate: the mean over clients of Self on validation, 0 to 100, and what it cost."""

    candidate: Candidate
    score: float
    cost: Mapping[str, float]


def on_validation(candidate: Candidate, rounds: int) -> RunConfig:
    """The configuration of a candidate's own run: nothing but own tasks is scored, once, and never a test sample."""
    scored = {"split": "validation", "every": rounds, "others": False, "unseen": False, "baseline": False}
    config = candidate.config
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=scored), "observers": ()})


def check(setup: Setup, plugins: PluginManager, tried: Sequence[Candidate]) -> None:
    """Raises `UserError` for whatever keeps a candidate from being tried. A run that tunes nothing passes."""
    if not tried:
        return
    for client in setup.benchmark.clients:
        for task in client.tasks:
            if len(task.validation) == 0:
                raise UserError(
                    f"Tuning needs validation samples, and the task '{task.name}' of client '{client.client_id}' has "
                    "none; test samples are never used for it."
                )
    if on_replies(setup, plugins, tried) is not None:
        return
    seen: list[RunConfig] = []
    for candidate in tried:  # rates and the like are checked by their section; components must be made to know
        told = candidate.config.model_copy(update={"training": setup.config.training, "stream": setup.config.stream})
        if told not in seen:
            seen.append(told)
            _named(candidate, lambda config=candidate.config: build(config, plugins, setup.benchmark))


def on_replies(setup: Setup, plugins: PluginManager, tried: Sequence[Candidate]) -> list[Parts] | None:
    """The components of each candidate, where candidates differ in the last reply alone; None where they do not."""
    config = setup.config
    served = all(key.startswith("aggregator.") for key in config.tune or ())
    if config.rounds > 1 or setup.parts.recipe().when != "replied" or not served:
        return None
    found = []
    for candidate in tried:
        parts = _named(candidate, lambda one=candidate: _checked(setup, plugins, one))
        aggregator = parts.aggregator
        early = type(aggregator).prepare is not Component.prepare or type(aggregator).init is not Aggregator.init
        if aggregator.asks or early:
            return None
        found.append(parts)
    return found


def _checked(setup: Setup, plugins: PluginManager, candidate: Candidate) -> Parts:
    """The run's components with a candidate's aggregator."""
    choice = candidate.config.aggregator
    parts = replace(setup.parts, aggregator=plugins.make("aggregator", choice.name, choice.options))
    check_components(candidate.config, parts)
    fed = replace(setup.federation(MemoryStore()), config=candidate.config)
    check_equal_adapters(fed, parts)
    for component in parts.components:
        component.check(fed)
    return parts


def _named(candidate: Candidate, make: Any) -> Any:
    """What `make` makes; an error says with which values."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"With {candidate.label}: {error}") from error


def replies(
    fed: Federation, parts: Parts, progress: Progress, outcomes: Mapping[str, Outcome], round_index: int
) -> Program[tuple[float, Mapping[str, float]]]:
    """Score and cost of a candidate's replies to what the clients have sent."""
    after = yield from absorbed(fed, parts, progress, outcomes, round_index)
    tasks = [
        replace(
            reply_task(fed, parts, after, client, round_index), score=own_cells(client), split="validation", heads={}
        )
        for client in fed.clients
    ]
    scored = yield tasks
    score = mean(values_of(name, outcome.scores)["self"] for name, outcome in scored.items())
    assert score is not None
    return score, total(outcome.cost for outcome in scored.values())


def record(config: RunConfig, scored: Sequence[Scored], how: str) -> dict[str, Any]:
    """What `tuning.json` holds, and `results.json` under "tuning": the candidates in order, and the chosen values."""
    best = max(scored, key=lambda item: item.score)
    return {
        "how": how,
        "settings": list(config.tune or ()),
        "candidates": [
            {"values": dict(item.candidate.values), "score": item.score, "cost": dict(item.cost)} for item in scored
        ],
        "chosen": dict(best.candidate.values),
    }
