"""Options of task arithmetic."""

from __future__ import annotations

from pydantic import Field

from pfl_plugins.merging.config import MergeConfig


class Config(MergeConfig):
    """Options of the aggregator `task-arithmetic`."""

    merge_coef: float | None = Field(
        0.4, gt=0, description="lambda: 0.4 without validation data (TIES paper), 0.3 for 8 tasks (OSRM paper)"
    )
