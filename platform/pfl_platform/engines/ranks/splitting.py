"""ZeRO stage 3: the frozen weights of a backbone's blocks, spread over the ranks that serve a client together.

Each rank holds its part of every block and gathers a block's weights while it is passed, forward and back. What trains
is left to DeepSpeed at stage 2. The gathering is torch's own (`fully_shard`), which waits for the ranks of one group;
DeepSpeed's stage 3 waits for all ranks of a launch, when an engine is made and in every pass it records, while groups
work at times of their own.

Embeddings, the head and what reads pictures are whole at each rank: ranks find features of pictures in caches of their
own, and so do not pass the same stages at the same time.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pfl_platform.adapters.host import Host
from pfl_platform.engines.ranks.grid import Grid


def split(host: Host, grid: Grid) -> None:
    """Spreads a host's blocks, and moves what is left to this rank's device. Params that anybody trains stay whole."""
    model, live = host.backbone.model, {tensor for tensor in host.params.values() if isinstance(tensor, nn.Parameter)}
    mesh = DeviceMesh.from_group(grid.group, grid.device)
    for path in host.backbone.blocks:  # a block at a time, so that no device ever holds all of them
        fully_shard(host.backbone.module(path), mesh=mesh, reshard_after_forward=True, ignored_params=live)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(grid.device)
