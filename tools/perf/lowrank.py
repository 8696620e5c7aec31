"""The common basis of K factored deltas against the SVD of the dense deltas side by side, in this process.

    python tools/perf/lowrank.py [--size 2048] [--clients 10] [--rank 8] [--threads 2] [--repeats 15]

The dense side builds `[D_1, ..., D_K]` (size, K size) and takes its thin SVD, once, in float32. The factored side is
the median of some repeats, in float64; it gives the same basis, singular values and coordinates, the latter as factors
(and, in a row of its own, written out as matrices). Both begin from the same float32 factors. The verdict is on
seconds by the clock; CPU seconds stand beside them, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from pfl_platform.lowrank.basis import CommonBasis, common_basis
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.rng import torch_rng

FASTER, NEAR = 500, 1e-5
T = TypeVar("T")


class Seconds(NamedTuple):
    clock: float
    cpu: float


def timed(function: Callable[[], T]) -> tuple[Seconds, T]:
    begun, worked = time.perf_counter(), time.process_time()
    result = function()
    return Seconds(time.perf_counter() - begun, time.process_time() - worked), result


def median(function: Callable[[], T], repeats: int) -> tuple[Seconds, T]:
    """Median seconds, after one call that is not counted."""
    result = function()
    clock, cpu = zip(*(timed(function)[0] for _ in range(repeats)), strict=True)
    return Seconds(statistics.median(clock), statistics.median(cpu)), result


def make(size: int, clients: int, rank: int) -> list[Delta]:
    """Deltas with random factors, float32; scale 2 as for alpha = 2 r."""

    def draw(*address: int | str, shape: tuple[int, int]) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(*shape, generator=torch_rng("perf", *address)) / size**0.5
        return drawn

    return [
        Delta(draw(k, "up", shape=(size, rank)), draw(k, "down", shape=(rank, size)), 2.0, f"client-{k}")
        for k in range(clients)
    ]


def dense(deltas: Sequence[Delta]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = torch.linalg.svd(torch.cat([delta.dense(torch.float32) for delta in deltas], dim=1), full_matrices=False)
    return found.U, found.S, found.Vh


def factored(deltas: Sequence[Delta]) -> CommonBasis:
    found = common_basis(deltas)
    for k in range(len(deltas)):
        found.coordinates(k)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    deltas = make(options.size, options.clients, options.rank)
    fast, basis = median(lambda: factored(deltas), options.repeats)
    written, _ = median(lambda: [basis.coordinates(k).dense() for k in range(options.clients)], options.repeats)
    slow, (_, values, _) = timed(lambda: dense(deltas))
    error = float((values[: basis.rank].double() - basis.values).abs().max() / values[0])
    print(f"{options.size} x {options.size}, K={options.clients}, r={options.rank}, {options.threads} threads")
    print(f"{'route':<38}{'seconds':>10}{'dense / it':>12}{'CPU seconds':>14}{'dense / it':>12}")
    both = Seconds(fast.clock + written.clock, fast.cpu + written.cpu)
    for name, it in (("dense SVD", slow), ("common basis", fast), ("common basis, coordinates written out", both)):
        print(f"{name:<38}{it.clock:>10.4f}{slow.clock / it.clock:>12.0f}{it.cpu:>14.4f}{slow.cpu / it.cpu:>12.0f}")
    faster = "holds" if slow.clock / fast.clock >= FASTER else "MISSED"
    near = "holds" if error <= NEAR else "MISSED"
    print(f"at least {FASTER} times faster (stated for 2048 x 2048, K=10, r=8): {faster}")
    print(f"largest difference of singular values, of the largest: {error:.1e}; at most {NEAR:.0e}: {near}")


if __name__ == "__main__":
    main()
