"""ZeRO stage 3: the frozen weights of a backbone's blocks, spread over the ranks that serve a client together.

Each rank holds its part of every block and gathers a block's weights while it is passed, forward and back. What trains
is left to DeepSpeed at stage 2. The gathering is torch's own (`fully_shard`), which waits for the ranks of one group;
DeepSpeed's stage 3 waits for all ranks of a launch, when an engine is made and in every pass it records, while groups
work at times of their own.

Blocks may lie in the machine's memory, or in files that are mapped into it, and reach the device while they are passed.
A file loses its name as soon as it is mapped: nothing is left behind, however the process ends.

Embeddings, the head and what reads pictures are whole at each rank: ranks find features of pictures in caches of their
own, and so do not pass the same stages at the same time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pfl_platform.adapters.host import Host
from pfl_platform.engines.ranks.grid import Grid
from pfl_platform.errors import UserError


@dataclass(frozen=True)
class Offload:
    """Where blocks lie while they are not passed; folder: of their files."""

    where: Literal["none", "cpu", "disk"] = "none"
    folder: str = ""

    def policy(self, device: str) -> OffloadPolicy:
        """Memory that is mapped from a file cannot be pinned."""
        pinned = self.where == "cpu" and device == "cuda"
        return OffloadPolicy() if self.where == "none" else CPUOffloadPolicy(pin_memory=pinned)


def split(host: Host, grid: Grid, offload: Offload = Offload()) -> None:
    """Spreads a host's blocks, and moves what is left to this rank's device. Params that anybody trains stay whole."""
    model, live = host.backbone.model, {tensor for tensor in host.params.values() if isinstance(tensor, nn.Parameter)}
    mesh = DeviceMesh.from_group(grid.group, grid.device)
    for path in host.backbone.blocks:  # a block at a time, so that no device ever holds all of them
        block = host.backbone.module(path)
        policy = offload.policy(grid.device)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=live, offload_policy=policy)
        if offload.where == "disk":
            _lay_down(block, offload.folder)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(grid.device)


def _lay_down(block: nn.Module, folder: str) -> None:
    """Puts this rank's part of a block into files, one for each param."""
    for module in block.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            if isinstance(param, DTensor) and param.to_local().numel():
                local = mapped(param.to_local(), folder)
                mesh, placements, size = param.device_mesh, param.placements, param.shape
                laid = DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=param.stride())
                module.register_parameter(name, nn.Parameter(laid, requires_grad=False))


def mapped(tensor: Tensor, folder: str = "") -> Tensor:
    """The same values in a file without a name, which is mapped into memory. Raises `UserError` where it cannot be
    written.

    >>> mapped(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)).sum().item()
    10.0
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix="pfl-block-", dir=folder or None)
        file = Path(name)
        try:
            with open(descriptor, "wb") as opened:  # written, and not mapped and then filled: a full disk is an error
                opened.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            found = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        finally:
            file.unlink()
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise UserError(
            f"A block cannot be laid down in '{where}' ({error.strerror or error}); name another folder by "
            "engine.offload_folder, or set engine.offload=cpu."
        ) from None
    return found.view(tensor.shape)
