"""Options of FlexLoRA."""

from __future__ import annotations

from pydantic import Field

from pfl_plugins.merging.config import MergeConfig, Weighting


class Config(MergeConfig):
    """Options of the aggregator `flexlora`."""

    weighting: Weighting = Field("num_samples", description="a client's weight: 1, or its number of training samples")
