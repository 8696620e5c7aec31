"""What a configured run makes its backbones do: the passes of a traced miniature (`tracing`), by where they occur.

A trace takes a second or two. Runs whose methods differ in nothing that a trace of a few samples can see share one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.ledger.plan import small_backbones
from pfl_platform.ledger.sampling import Pass
from pfl_platform.ledger.tracing import Trace, Turn, trace
from pfl_platform.plugins import PluginManager, available, unadorned
from pfl_platform.settings import COMPONENTS
from pfl_platform.testing.kills import cache_of_its_own

SMALL, LARGE = "small", "large"
SEEN = 8
"""Samples of the public set in a trace."""
MOST = 20
"""Above this, whole numbers in options count alike: a trace's clients have no more samples than this."""

Passes = Mapping[Pass, float]
"""How many rows go through each kind of pass; its backbone is `small` or `large`."""


@dataclass(frozen=True)
class Work:
    """step: by the place of a client's backbone, rows per row of a local step. server, before: rows in a round, and
    before round 0, of a federation of three clients and a public set of `SEEN` samples. trained: how much a client
    trains in the mean round, over the traced one. slots: adapters per client. passes: whose logits are added where an
    answer is made."""

    step: Mapping[str, Passes]
    server: Passes
    before: Passes
    trained: float
    slots: int
    passes: int


@dataclass
class Tracer:
    """Traces methods, each form of one once. steps: local steps of a traced round."""

    folder: Path
    manager: PluginManager
    steps: int = 10
    _pair: tuple[str, str] | None = None
    _known: dict[str, Work] = field(default_factory=dict)

    def work(self, config: RunConfig) -> Work:
        """Raises `UserError` where a method cannot be traced."""
        key = form_of(config)
        if key not in self._known:
            self._pair = self._pair or small_backbones(self.manager)
            rounds = max(config.rounds, 3)
            settings = settings_of(config)
            with cache_of_its_own(self.folder / "cache"):  # what runs have left there would cost nothing
                traced = trace(
                    config.method, self._pair, self.folder, steps=self.steps, rounds=rounds, settings=settings
                )
            self._known[key] = self._work(traced, self._pair)
        return self._known[key]

    def _work(self, traced: Trace, pair: tuple[str, str]) -> Work:
        place = dict(zip(pair, (SMALL, LARGE), strict=True))
        parts = traced.setup.parts
        step = {
            place[traced.setup.backbone_of[client]]: rows(turn, place, self.steps)
            for client, turn in reversed(list(traced.clients.items()))
        }
        return Work(
            step,
            rows(traced.server, place),
            rows(traced.prepared, place),
            traced.trained / traced.rounds,
            len(parts.objective.slots),
            len(parts.recipe().passes),
        )


def rows(turn: Turn, place: Mapping[str, str], over: float = 1.0) -> dict[Pass, float]:
    """Rows of a turn by kind of pass; a trace has one row in a pass."""
    row = sum(turn.tokens.values()) / max(1, turn.passes)
    found: dict[Pass, float] = {}
    for kind, tokens in turn.tokens.items():
        where = Pass(place.get(kind.backbone, SMALL), kind.trained, kind.idle, kind.gradient)
        found[where] = found.get(where, 0.0) + tokens / row / over
    return found


def settings_of(config: RunConfig) -> list[str]:
    """A run's components as texts `key=value`, for a trace on small backbones; of the adapter the name alone, since its
    rank and targets are for the run's own backbones."""
    found = [f"adapter.name={config.adapter.name}"]
    for kind in COMPONENTS[1:]:
        choice = getattr(config, kind)
        value = None if choice is None else {"name": choice.name, "options": _without_models(choice.options)}
        found.append(f"{kind}={json.dumps(value)}")
    return [*found, f"public.size={SEEN}"]


def form_of(config: RunConfig) -> str:
    """Equal for runs whose traces are equal: fractions change sums and not passes."""
    kinds = [(kind, getattr(config, kind)) for kind in COMPONENTS]
    named = [
        (kind, choice.name, _coarse({} if kind == "adapter" else choice.options))
        for kind, choice in kinds
        if choice is not None
    ]
    return repr((config.method, config.rounds, named))


def _coarse(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((key, _coarse(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return [_coarse(part) for part in value]
    if isinstance(value, float):
        return "a fraction"
    return min(value, MOST) if isinstance(value, int) and not isinstance(value, bool) else value


def _without_models(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without names of backbones, which a trace has others of."""
    known = available("backbone")
    return {key: value for key, value in options.items() if not (isinstance(value, str) and unadorned(value) in known)}
