"""Groups of ranks: each serves one client at a time, and gradients are averaged within it and nowhere else.

DeepSpeed asks an object such as this one which ranks share a gradient. Without it, it takes all of them, and averages
the gradients of different clients without a word.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from pfl_platform.engines.ranks.place import Place


class Grid:
    """The process groups of a launch. Made by all ranks at the same time, once there is a connection among them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        # Every rank has to make every group, in one order.
        of_shards = [dist.new_group(place.members(group)) for group in range(place.groups)]
        alone = [dist.new_group([rank]) for rank in range(place.size)] if place.shards > 1 else of_shards
        self._group = of_shards[place.group]
        self._alone = alone[place.rank]

    @property
    def device(self) -> str:
        """Where tensors must lie that are sent within the group."""
        return "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"

    @property
    def group(self) -> Any:
        """The ranks that serve one client together."""
        return self._group

    # What DeepSpeed asks of its argument `mpu`:

    def get_data_parallel_group(self) -> Any:
        return self._group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self.place.members(self.place.group)

    def get_data_parallel_rank(self) -> int:
        return self.place.shard

    def get_data_parallel_world_size(self) -> int:
        return self.place.shards

    def get_model_parallel_group(self) -> Any:
        return self._alone

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1
