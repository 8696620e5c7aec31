"""Settings that are chosen on validation samples: what is tried. How it is tried: `federation.tuning`.

    tune: {aggregator.merge_coef: [0.1, 0.3, 1.0], training.lr: [3e-5, 2e-4]}

tries all six combinations. Test samples take no part in the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.settings import COMPONENTS, assignment, lay_over, nested, parse
from pfl_platform.validation import explain

TUNABLE = (*COMPONENTS, "training", "stream", "rounds", "local_steps", "local_epochs", "heads")
"""Settings that may be tuned: how clients learn and what the server does, never what is measured on which data."""


@dataclass(frozen=True)
class Candidate:
    """One combination: dotted setting -> value, and the run's configuration with them and without `tune`."""

    values: Mapping[str, Any]
    config: RunConfig

    @property
    def label(self) -> str:
        return label(self.values)


def label(values: Mapping[str, Any]) -> str:
    """Values by the last part of their names.

    >>> label({"aggregator.options.merge_coef": 0.3, "training.lr": 1e-4})
    'merge_coef=0.3, lr=0.0001'
    """
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())


def grid(text: str) -> tuple[str, list[Any]]:
    """The setting and the values of `key=a,b,c`.

    >>> grid("training.lr=1e-3,1e-4"), grid("adapter.targets=[q],[q,v]")
    (('training.lr', [0.001, 0.0001]), ('adapter.targets', [['q'], ['q', 'v']]))
    """
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise UserError(f"'{text}' is nothing to tune; write it as key=value,value, such as training.lr=1e-4,3e-4.")
    found = parse(f"[{values}]", f"the values of {key.strip()}")
    return assignment(f"{key}=0")[0], list(found)


def candidates(config: RunConfig) -> list[Candidate]:
    """All combinations of the values of `tune`, the last setting changing fastest. Raises `UserError` for a setting
    that cannot be tuned, has no values, or gets one that it cannot have."""
    grids = config.tune or {}
    for key, values in grids.items():
        if key.partition(".")[0] not in TUNABLE:
            raise UserError(
                f"The setting '{key}' cannot be tuned; these can, and what is in them: {', '.join(TUNABLE)}."
            )
        if not values:
            raise UserError(f"The setting 'tune.{key}' has no values to try.")
    chosen = [dict(zip(grids, values, strict=True)) for values in product(*grids.values())]
    return [Candidate(values, with_values(config, values, tune=None)) for values in chosen if values]


def with_values(config: RunConfig, values: Mapping[str, Any], **more: Any) -> RunConfig:
    """A configuration with other values at dotted settings."""
    settings = config.model_dump(mode="json") | more
    for key, value in values.items():
        settings = lay_over(settings, nested(key, value))
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig, origins=dict.fromkeys(values, "the values to tune"))) from None
