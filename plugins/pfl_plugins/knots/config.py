"""Options of merging in KnOTS coordinates."""

from __future__ import annotations

from pydantic import Field

from pfl_plugins.isoc.config import IsoOptions
from pfl_plugins.merging.config import MergeConfig, SpaceName
from pfl_plugins.ties.config import TiesOptions


class Config(MergeConfig):
    """Options of the aggregator `knots`: the mean."""

    space: SpaceName = Field("knots", description="as for the other methods; `knots` is what this one is about")


class KnotsTiesConfig(Config, TiesOptions):
    """Options of the aggregator `knots-ties`."""


class KnotsIsoConfig(Config, IsoOptions):
    """Options of the aggregator `knots-iso-c`."""

    merge_coef: float | None = Field(None, gt=0, description="alpha; default: 1 / K, the size of a mean")
