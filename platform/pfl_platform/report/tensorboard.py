"""Writes a run's curves to `tensorboard/` in its folder; see them with `tensorboard --logdir RUN`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pfl_platform.config import Section
from pfl_platform.hookspecs import Options, hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.observers import Observer


class TensorboardOptions(Section):
    """The observer `tensorboard` has no options."""


@hookimpl
def pfl_make_observer(name: str, options: Options) -> Observer | None:
    """The observer `tensorboard`."""
    if name != "tensorboard":
        return None
    from pfl_platform.report.scalars import Scalars

    TensorboardOptions.model_validate(dict(options))
    return Scalars()
