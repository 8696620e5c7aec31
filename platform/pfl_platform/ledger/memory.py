"""Peak memory of this process: of the device when there is one, else resident memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Peak in bytes: of a CUDA device's tensors since `reset_peak`, else of the process's resident memory.

    The resident peak never falls, so on a CPU it bounds what a task took and does not single it out.

    >>> peak_memory() > 1_000_000
    True
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident_peak()


def reset_peak(device: torch.device | str = "cpu") -> None:
    """Begins a new peak on a CUDA device; nothing can be begun anew on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _resident_peak() -> int:
    # Not `ru_maxrss` where the kernel's own mark can be read: a process inherits that from the one that started it, so
    # a small run started by a large process would seem large.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
