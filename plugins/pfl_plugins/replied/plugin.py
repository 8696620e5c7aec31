"""Evaluates what the server has made of the updates, before any client trains on it.

Most personalised methods are measured after local training; a merging method is measured by its merged model, as in
the tables of "Unraveling LoRA Interference" (2505.22934). See the README beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.components import Personalizer


class Config(BaseModel):
    """The personalizer `replied` has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@hookimpl
def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
    if name != "replied":
        return None
    Config(**options)
    from pfl_plugins.replied.personalizer import Replied

    return Replied()
