"""How much memory and disk there is. A container may be allowed less memory than its machine has."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Limits of this size and above are none."""


@dataclass(frozen=True)
class Capacity:
    """bytes: of memory. whose: in words."""

    bytes: int
    whose: str


def memory_of(device: str) -> Capacity:
    """The memory of a device by name (`auto`: a GPU where there is one); for the CPU, of the machine or the container.

    >>> memory_of("cpu").bytes > 1 << 20
    True
    """
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return Capacity(0, "this machine has no GPU")
        found = torch.cuda.get_device_properties(torch.device("cuda" if device == "auto" else device))
        return Capacity(int(found.total_memory), f"the GPU ({found.name})")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit()
    return Capacity(limit, "this container") if limit < machine else Capacity(machine, "this machine")


def container_limit(root: Path = CGROUPS, groups: Path = Path("/proc/self/cgroup")) -> int:
    """The smallest limit of memory among the control groups that this process is in, of either version; `UNLIMITED`
    where there is none."""
    found = [UNLIMITED]
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    places = [(root, "memory.max"), (root / "memory", "memory.limit_in_bytes")]
    for line in lines:
        number, kinds, path = [*line.split(":", 2), "", ""][:3]
        base, name = (root, "memory.max") if number == "0" else (root / "memory", "memory.limit_in_bytes")
        if number == "0" or "memory" in kinds.split(","):
            inner = base / path.strip("/")
            places += [(folder, name) for folder in (inner, *inner.parents) if root in (folder, *folder.parents)]
    for folder, name in places:
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < UNLIMITED:
            found.append(int(text))
    return min(found)


def disk_free(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
