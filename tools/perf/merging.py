"""Whole merges at the shapes of real backbones, each method in a process of its own: seconds and memory.

    python tools/perf/merging.py                       # Llama-3.2-1B: q and v of 16 layers, rank 8, ten clients
    python tools/perf/merging.py --shapes 3b           # Llama-3.2-3B: seven maps of 28 layers, rank 128
    python tools/perf/merging.py --shapes 3b --layers 1 --decay 1e-4   # adapters with singular values far apart
    python tools/perf/merging.py --peft                # mean and task arithmetic beside peft's own merging

Adapters, and what regmean and fisher measure, are drawn at random; drawing is not timed. `cpu` is the processor's time:
on a machine with other work, and with --threads 1, it says what `seconds` would be on one core alone. With --passive
threads that wait for one another do not spin, as they do unless told otherwise: beside other work, spinning takes
several times the processor's time of the work, but on an idle machine threads that sleep are late. `memory`
is how much the process grew while merging, in units of all adapters together, which lie in memory before; tensors of
4 MiB and more go back to the system at once (glibc), so that what has been freed is not counted. At the larger shapes
adapters do not fit: each is drawn when it is read, and `memory` is that of the whole process. `read` is the size of all
statistics that were read, in units of the adapters.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pfl_platform.lowrank.deltas import Delta

Shapes = Mapping[str, tuple[int, int]]

BACKBONES: Mapping[str, tuple[int, Shapes, int]] = {
    "1b": (16, {"q_proj": (2048, 2048), "v_proj": (512, 2048)}, 8),
    "3b": (
        28,
        {
            "q_proj": (3072, 3072),
            "k_proj": (1024, 3072),
            "v_proj": (1024, 3072),
            "o_proj": (3072, 3072),
            "gate_proj": (8192, 3072),
            "up_proj": (8192, 3072),
            "down_proj": (3072, 8192),
        },
        128,
    ),
}
"""Name -> layers, maps of a layer (d_out, d_in), usual rank."""

RULES: Sequence[tuple[str, str, float]] = (
    ("task-arithmetic", "ab", 5),
    ("task-arithmetic", "delta", 5),
    ("task-arithmetic", "knots", 5),
    ("ties", "ab", 5),
    ("ties", "knots", 5),
    ("ties", "delta", 30),
    ("dare", "ab", 5),
    ("dare", "knots", 5),
    ("dare", "delta", 30),
    ("dare-ties", "delta", 30),
    ("iso-c", "ab", 5),
    ("iso-c", "delta", 5),
    ("iso-c", "knots", 5),
    ("flexlora", "delta", 5),
    ("emr", "ab", 5),
    ("emr", "delta", 30),
    ("regmean", "ab", 5),
    ("regmean", "delta", 5),
    ("fisher", "ab", 5),
    ("fisher", "delta", 30),
)
"""Aggregator, space, bound in seconds on two cores at the smaller shapes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(BACKBONES), default="1b")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decay", type=float, default=1.0, help="an adapter's last rank-one term beside its first")
    parser.add_argument("--only", help="rules, comma-separated: ties/knots,iso-c/delta")
    parser.add_argument("--peft", action="store_true", help="beside peft's own merging; neither measures its results")
    parser.add_argument("--passive", action="store_true", help="for a machine with other work")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        name, _, space = options.child.partition("/")
        print(json.dumps(peft_merge(options, space) if name == "peft" else merge(options, name, space)))
        return
    rules = RULES if not options.only else [rule for rule in RULES if f"{rule[0]}/{rule[1]}" in options.only.split(",")]
    if options.peft:
        rules = [
            ("task-arithmetic", "ab", 0),
            ("peft", "linear", 0),
            ("task-arithmetic", "delta", 0),
            ("peft", "svd", 0),
        ]
    policy = {"OMP_WAIT_POLICY": "PASSIVE"} if options.passive else {}
    print(f"{options.clients} clients, shapes {options.shapes}, {options.threads} threads")
    print(f"{'rule':<18}{'space':<8}{'seconds':>9}{'cpu':>9}{'bound':>7}{'memory':>9}{'read':>8}")
    for name, space, bound in rules:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", f"{name}/{space}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**22), **policy},
        )
        if done.returncode:
            print(f"{name:<18}{space:<8}{done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        limit = f"{bound:.0f}" if bound and options.shapes == "1b" else "-"
        unit = "x" if options.shapes == "1b" else " GiB"
        read = f"{found['read']:>7.1f}x" if found.get("read") else ""
        print(
            f"{name:<18}{space:<8}{found['seconds']:>9.2f}{found['cpu']:>9.2f}{limit:>7}"
            f"{found['memory']:>8.1f}{unit}{read}",
            flush=True,
        )


def maps(options: argparse.Namespace) -> tuple[dict[str, tuple[int, int]], int]:
    layers, shapes, rank = BACKBONES[options.shapes]
    count = options.layers or layers
    return {f"layers.{i}.{name}": shape for i in range(count) for name, shape in shapes.items()}, options.rank or rank


class Clock:
    """Wall time and processor time of what ran under it."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun[0]
        self.cpu += time.process_time() - self._begun[1]


class Adapters:
    """Random adapters: all in memory, or each module drawn when it is read, on the clock."""

    def __init__(
        self, modules: Shapes, rank: int, clients: int, clock: Clock, *, held: bool, decay: float = 1.0
    ) -> None:
        self.modules, self.rank, self.clock, self.decay = modules, rank, clock, decay
        self.held = {(k, module): self._drawn(k, module) for module in modules for k in range(clients)} if held else {}

    def __call__(self, k: int, module: str) -> Delta:
        if (k, module) in self.held:
            return self.held[k, module]
        with self.clock:
            return self._drawn(k, module)

    def _drawn(self, k: int, module: str) -> Delta:
        import torch

        from pfl_platform.lowrank.deltas import Delta
        from pfl_platform.rng import torch_rng

        (d_out, d_in), generator = self.modules[module], torch_rng(0, "perf", module, k)
        up = torch.randn(d_out, self.rank, generator=generator) / 100
        if self.decay != 1.0:
            up *= torch.logspace(0, math.log10(self.decay), self.rank)
        return Delta(up, torch.randn(self.rank, d_in, generator=generator) / 50, 2.0, f"client {k}")


class Statistics:
    """Gram matrices and Fisher information of random data, drawn whenever they are read, on the clock; `values` counts
    them. Maps that read the same input (query, key and value; gate and up) have one Gram matrix."""

    def __init__(self, modules: Shapes, rank: int, clock: Clock) -> None:
        self.modules, self.rank, self.clock, self.values = modules, rank, clock, 0

    def shared(self, name: str, module: str) -> str:
        layer, _, kind = module.rpartition(".")
        inputs = {"q_proj": "block", "k_proj": "block", "v_proj": "block", "gate_proj": "mlp", "up_proj": "mlp"}
        return f"{layer}.{inputs.get(kind, kind)}" if name == "gram" else module

    def __call__(self, name: str, k: int, module: str) -> Tensor:
        import torch

        from pfl_platform.rng import torch_rng

        (d_out, d_in), generator = self.modules[module], torch_rng(0, "perf", name, self.shared(name, module), k)
        sides = {"m": (64, d_in), "A": (self.rank, d_in), "B": (d_out, self.rank), "W": (d_out, d_in)}[name[-1]]
        with self.clock:
            found = torch.rand(sides, generator=generator)
            found = (found.T @ found).div_(64) if name == "gram" else found
        self.values += found.numel()
        return found


def grown_since(before: int, values: int) -> float:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / (4 * values)


def merge(options: argparse.Namespace, name: str, space: str) -> dict[str, float]:
    """One whole merge of random adapters; the disk plays no part."""
    import torch

    from pfl_platform.federation.merging import Inputs, Target
    from pfl_platform.plugins import PluginManager
    from pfl_platform.rng import torch_rng

    torch.set_num_threads(options.threads)
    modules, rank = maps(options)
    held = options.shapes == "1b"
    drawing, merging = Clock(), Clock()
    adapters = Adapters(modules, rank, options.clients, drawing, held=held, decay=options.decay)
    merger = PluginManager().make("aggregator", name, {"space": space}).merger
    inputs = Inputs(
        names=tuple(f"client {k}" for k in range(options.clients)),
        modules=tuple(sorted(modules)),
        weights=(1.0 / options.clients,) * options.clients,
        read=adapters,
        rng=lambda *parts: torch_rng(0, *parts),
        statistic=(drawn := Statistics(modules, rank, drawing)),
        shared=drawn.shared,
    )
    targets = [Target(rank, 2.0)] * (options.clients if merger.personal else 1)
    values = sum(rank * (d_out + d_in) for d_out, d_in in modules.values()) * options.clients
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with merging:
        for merged in merger.merge(inputs, targets):
            if not options.peft:  # the report is a part of a merge, but peft makes none
                dict(merged.report)
    took = {"seconds": merging.seconds - drawing.seconds, "cpu": merging.cpu - drawing.cpu}
    memory = grown_since(before, values) if held else grown_since(0, 2**28)  # four bytes each: GiB
    return {**took, "memory": memory, "read": drawn.values / values}


def peft_merge(options: argparse.Namespace, kind: str) -> dict[str, float]:
    """The same by peft's `add_weighted_adapter` on bare linear maps of the same shapes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    torch.set_num_threads(options.threads)
    modules, rank = maps(options)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for module, (d_out, d_in) in modules.items():
                self.add_module(module.replace(".", "_"), nn.Linear(d_in, d_out, bias=False))

    names = [module.replace(".", "_") for module in modules]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, init_lora_weights=False)
    model = get_peft_model(Maps(), config, adapter_name="0")
    for k in range(1, options.clients):
        model.add_adapter(str(k), config)
    values = sum(rank * (d_out + d_in) for d_out, d_in in modules.values()) * options.clients
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shares = [1.0 / options.clients] * options.clients
    extra = {"svd_rank": rank} if kind == "svd" else {}
    with (merging := Clock()):
        model.base_model.add_weighted_adapter(
            [str(k) for k in range(options.clients)], shares, "merged", combination_type=kind, **extra
        )
    return {"seconds": merging.seconds, "cpu": merging.cpu, "memory": grown_since(before, values)}


if __name__ == "__main__":
    main()
