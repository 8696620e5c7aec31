"""Which rank of a launch this process is, as its launcher says in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pfl_platform.errors import UserError

SPREAD = 3
"""The ZeRO stage at which ranks share the backbone, too; see `pfl_platform.engines.ranks.splitting`."""


@dataclass(frozen=True)
class Place:
    """One process of a launch. local_rank: its number on its machine, which is that of its GPU. shards: ranks that
    serve a client together.

    >>> place = Place(rank=5, size=8, local_rank=5, shards=2)
    >>> place.group, place.shard, place.groups
    (2, 1, 4)
    """

    rank: int
    size: int
    local_rank: int
    shards: int = 1

    @property
    def group(self) -> int:
        return self.rank // self.shards

    @property
    def shard(self) -> int:
        return self.rank % self.shards

    @property
    def groups(self) -> int:
        return self.size // self.shards

    def members(self, group: int) -> list[int]:
        """The ranks of a group."""
        return list(range(group * self.shards, (group + 1) * self.shards))


def here(environment: Mapping[str, str] | None = None) -> Place | None:
    """This process's place; None when no launcher has started it.

    >>> here({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    Place(rank=1, size=2, local_rank=1, shards=1)
    >>> here({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"})
    Place(rank=3, size=4, local_rank=1, shards=1)
    """
    found = os.environ if environment is None else environment
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in found and size in found:
            try:
                place = Place(int(found[rank]), int(found[size]), int(found.get(local, "0")))
            except ValueError:
                raise UserError(
                    f"The launcher's variables {rank}={found[rank]} and {size}={found[size]} are no numbers."
                ) from None
            if not 0 <= place.rank < place.size:
                raise UserError(f"The launcher's variables say rank {place.rank} of {place.size} ranks.")
            return place
    return None


def settle_environment(place: Place) -> None:
    """Completes what the libraries read there: under Slurm it has other names."""
    os.environ.setdefault("RANK", str(place.rank))
    os.environ.setdefault("WORLD_SIZE", str(place.size))
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    if "SLURM_PROCID" in os.environ:
        os.environ.setdefault("MASTER_ADDR", first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")))
        job = int(re.sub(r"\D", "", os.environ.get("SLURM_JOB_ID", "")) or 0)
        os.environ.setdefault("MASTER_PORT", str(20000 + job % 20000))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"The launcher has not set {name}: the ranks cannot find each other.")


def first_host(names: str) -> str:
    """The first machine of a list as Slurm writes it.

    >>> first_host("node[007-009,012],other"), first_host("a,b")
    ('node007', 'a')
    """
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", names)
    return (match[1] + (match[2] or "")) if match else names


def check_stage(stage: int, shards: int, offload: str = "none") -> None:
    """Raises `UserError` for a backbone that is to be spread over one rank, or laid down and not spread."""
    if stage == SPREAD and shards == 1 and offload == "none":
        raise UserError("ZeRO stage 3 spreads a backbone over the ranks of a client; say over how many with --shards.")
    if stage != SPREAD and offload != "none":
        raise UserError(f"Blocks are kept elsewhere (engine.offload={offload}) at ZeRO stage 3 alone; add --zero 3.")


def check_folder(offload: str, folder: str) -> None:
    """Raises `UserError` for a folder in which no block can be laid down."""
    if not folder:
        return
    if offload != "disk":
        raise UserError("engine.offload_folder is for engine.offload=disk; add it, or leave the folder out.")
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise UserError(f"engine.offload_folder is '{folder}', which is no folder that can be written to.")


def leaves(offload: str, device: str) -> bool:
    """Whether blocks that are offloaded leave the memory in which a device computes.

    >>> leaves("cpu", "cuda"), leaves("cpu", "cpu"), leaves("disk", "cpu")
    (True, False, True)
    """
    return offload == "disk" or (offload == "cpu" and device != "cpu")
