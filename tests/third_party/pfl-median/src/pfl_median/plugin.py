"""Coordinate-wise median and trimmed mean of the clients' params (Yin et al., ICML 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform import hookimpl

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator


class Config(BaseModel):
    """Options of the aggregator `median`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trim: float = Field(
        0.5, ge=0, le=0.5, description="beta, fraction left out at either end; 0.5: the median, 0: the mean"
    )


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "median":
        return None
    config = Config(**options)
    from pfl_median.aggregator import Median

    return Median(config)
