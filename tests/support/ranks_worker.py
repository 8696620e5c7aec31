"""What two ranks find out in one launch, as JSON in the file that is named; see `tests/core/test_ranks_launch.py`."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.config import RunConfig
from pfl_platform.engines.ranks import zero
from pfl_platform.engines.ranks.grid import Grid
from pfl_platform.engines.ranks.place import here
from pfl_platform.engines.ranks.splitting import Offload
from pfl_platform.engines.ranks.start import Launch, joined
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.testing.bench import Bench
from pfl_platform.testing.ranks import difference
from pfl_platform.training.driver import Driver, Portion, rate_factor
from pfl_platform.training.surfaces import Keys, Optim

SMALL, LARGE = "tiny-llama-s", "tiny-llama-m"
QUICK = ["backbone_options.init=0", "evaluation.baseline=false", "evaluation.others=false", "local_steps=2"]
ADAPTERS = Keys("local/*", "global/*")
Opened = Callable[[], Driver]


class Doing:
    """Runs a method at all ranks and, at rank 0, in one process; tells how far apart they end."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self.launch, self.folder = launch, folder
        self._count = 0

    def bench(self, method: str, rounds: int, *settings: str) -> Bench:
        self._count += 1
        return Bench(method, self.folder / str(self._count), (SMALL, LARGE), [*QUICK, *settings], rounds=rounds)

    def apart(
        self,
        method: str,
        *settings: str,
        launch: Launch | None = None,
        rounds: int = 3,
        clients: int = 3,
        keys: Keys | None = None,
    ) -> float:
        bench = self.bench(method, rounds, *settings)
        config = bench.config()
        shards = (launch or self.launch).place.shards
        many = config.engine.model_copy(update={"name": "deepspeed", "shards": shards})
        self.run(bench, config.model_copy(update={"engine": many}), "ranks", launch or self.launch, clients)
        if not self.launch.together.leads:
            return 0.0
        alone = config.engine.model_copy(update={"zero": 0})
        self.run(bench, config.model_copy(update={"engine": alone}), "alone", None, clients)
        return difference(bench.folder / "alone", bench.folder / "ranks", keys)

    def run(self, bench: Bench, config: RunConfig, name: str, carrier: Launch | None, clients: int) -> None:
        session.run(
            config,
            bench.folder / name,
            quiet=True,
            plugins=bench.manager,
            benchmark=bench.benchmark(clients),
            carrier=carrier,
        )


class Naive:
    """A driver as one would write it first: DeepSpeed steps one AdamW over all params of a host.

    clear: forget the moments when a client begins. mpu: tell DeepSpeed who shares a gradient.
    """

    portion = Portion()

    def __init__(self, stage: int, grid: Grid, *, clear: bool = True, mpu: bool = True) -> None:
        self.stage, self.grid, self.clear, self.mpu = stage, grid, clear, mpu
        self.engines: dict[int, tuple[Any, torch.optim.AdamW]] = {}

    def total(self, value: float) -> float:
        return value

    def adopt(self, host: Host) -> None:
        params = zero.managed(host)
        for param in params.values():
            param.requires_grad_(True)
        adam = torch.optim.AdamW(list(params.values()), lr=1.0, weight_decay=0.0)
        from deepspeed.utils import groups

        groups.mpu = grid = self.grid if self.mpu else None
        engine = zero._engine(host.backbone.model, adam, self.stage, grid, sum(p.numel() for p in params.values()))
        for param in params.values():
            param.requires_grad_(False)
            self.engines[id(param)] = engine, adam

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Mapping[str, Tensor]) -> NaiveStep:
        engine, adam = self.engines[id(next(iter(params.values())))]
        if self.clear:
            adam.state.clear()
        if self.stage:
            engine.optimizer.refresh_fp32_params()
        return NaiveStep(engine, adam, optim)


class NaiveStep:
    def __init__(self, engine: Any, adam: torch.optim.AdamW, optim: Optim) -> None:
        self.engine, self.adam, self.optim = engine, adam, optim

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def update(self, index: int) -> None:
        for group in self.adam.param_groups:
            group["lr"] = self.optim.lr * rate_factor(self.optim, self.optim.first_step + index)
        self.engine.step()

    def moments(self) -> dict[str, Tensor]:
        return {}


class NaiveLaunch(Launch):
    """A launch whose ranks train with another driver."""

    opened: Opened

    def driver(self, config: RunConfig) -> Driver:
        return self.opened()


def naive(launch: Launch, opened: Opened) -> Launch:
    other = NaiveLaunch(launch.place, launch.grid, launch.together)
    object.__setattr__(other, "opened", opened)
    return other


def adopted(bench: Bench, driver: Driver) -> Host:
    """A host whose params the driver steps."""
    loaded = bench.manager.make("backbone", SMALL, {"dtype": "float32", "device": "cpu", "init": 0})
    adapter = bench.manager.make("adapter", bench.config().adapter.name, bench.config().adapter.options)
    host = Host(loaded, adapter, [Slot("global")])
    driver.adopt(host)
    return host


def held(launch: Launch, doing: Doing) -> Mapping[str, float]:
    """Which share of its frozen blocks a rank holds at stage 3, and of all else."""
    host = adopted(doing.bench("fedit", 1), zero.ZeroDriver(3, launch.grid))
    live = {id(tensor) for tensor in host.params.values()}
    sums = {"blocks": [0, 0], "the rest": [0, 0]}
    for name, tensor in host.backbone.model.named_parameters():
        inside = any(name.startswith(f"{path}.") for path in host.backbone.blocks) and id(tensor) not in live
        here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        part = sums["blocks" if inside else "the rest"]
        part[0], part[1] = part[0] + here.numel(), part[1] + tensor.numel()
    return {name: part / whole for name, (part, whole) in sums.items()}


def mapped_blocks(folder: Path, launch: Launch, doing: Doing) -> Sequence[int]:
    """How many values of blocks lie in files of a folder, how many there are, and how many files have a name."""
    host = adopted(doing.bench("fedit", 1), zero.ZeroDriver(3, launch.grid, Offload("disk", str(folder))))
    live = {id(tensor) for tensor in host.params.values()}
    lines = Path("/proc/self/maps").read_text().splitlines()
    starts = {int(line.split("-")[0], 16) for line in lines if f"{folder}/pfl-block-" in line}
    blocks = [
        tensor
        for path in host.backbone.blocks
        for tensor in host.backbone.module(path).parameters()
        if id(tensor) not in live
    ]
    laid = [tensor for tensor in blocks if isinstance(tensor, DTensor) and tensor.to_local().data_ptr() in starts]
    values = [sum(tensor.numel() for tensor in part) for part in (laid, blocks)]
    return [*values, len(list(folder.glob("pfl-block-*")))]


def grown(launch: Launch, doing: Doing) -> float:
    """Megabytes that 50 clients leave behind in a rank, one after another in one engine."""
    bench = doing.bench("fedit", 1)
    driver = zero.ZeroDriver(2, launch.grid)
    host = adopted(bench, driver)
    loaded = host.backbone
    batch = loaded.codec.encode(bench.benchmark(1).clients[0].tasks[0].train[:2])
    start = host.read(list(host.params))

    def client() -> None:
        host.load(start)
        stepper = driver.open("local.step", host.select(Keys("global/*")), Optim(1e-3), {})
        for index in range(2):
            with host.mixing({"global": 1.0}, batch.inputs["attention_mask"]):
                loss = loaded.model(**batch.inputs, use_cache=False).logits.float().square().mean()
            stepper.backward(loss)
            stepper.update(index)
        stepper.moments()

    def resident() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    for _ in range(15):
        client()
    before = resident()
    for _ in range(50):
        client()
    return resident() - before


def main(file: Path, folder: Path) -> None:
    place = here()
    assert place is not None
    options = Bench("fedit", folder, (SMALL, LARGE)).config().engine
    found: dict[str, Any] = {}
    torch.set_num_threads(1)

    def keep() -> None:
        if place.rank == 0:
            file.write_text(json.dumps(found))

    with joined(place, options) as launch:
        doing = Doing(launch, folder)
        for method, stage in (("ditto", 0), ("ditto", 1), ("ditto", 2), ("fedmosaic", 2)):
            found[f"{method} at stage {stage}"] = doing.apart(method, f"engine.zero={stage}")
            keep()
        keep()
        found["accumulating"] = doing.apart("fedit", "engine.zero=2", "training.micro_batch=1", rounds=1)
        found["memory"] = grown(launch, doing)
        pair = replace(place, shards=2)
        both = replace(launch, place=pair, grid=Grid(pair))
        found["held"] = held(both, doing)
        for stage in (0, 2, 3):
            found[f"two shards at stage {stage}"] = doing.apart("ditto", f"engine.zero={stage}", launch=both, clients=1)
        laid = ("engine.zero=3", "engine.offload=disk", f"engine.offload_folder={folder}")
        found["two shards on disk"] = doing.apart("ditto", *laid, launch=both, clients=1)
        found["each rank's own on disk"] = doing.apart("ditto", *laid)
        found["each rank's own in memory"] = doing.apart("ditto", "engine.zero=3", "engine.offload=cpu")
        found["mapped"] = mapped_blocks(folder, launch, doing)
        keep()
        flat = ("training.clip=0", "training.weight_decay=0", "training.lr=0.01")
        for name, stage, options_of, method in (
            ("as it should be", 2, {}, "fedit"),
            ("moments not cleared", 2, {"clear": False}, "fedit"),
            ("slots alternate at stage 1", 1, {}, "ditto"),
            ("slots alternate at stage 2", 2, {}, "ditto"),
            ("no mpu", 0, {"mpu": False}, "fedit"),
        ):
            other = naive(launch, lambda stage=stage, more=options_of: Naive(stage, launch.grid, **more))
            # Two clients of one backbone, so that both ranks take as many steps: else they would wait for ever.
            clients = 2 if name == "no mpu" else 4
            found[name] = doing.apart(method, *flat, launch=other, rounds=1, clients=clients, keys=ADAPTERS)
            keep()
        if place.rank == 1:
            Worker.execute = _broken  # type: ignore[method-assign,assignment]
        try:
            doing.apart("fedit", rounds=1, clients=2)
        except UserError as error:
            if place.rank == 1:
                raise
            found["a rank's error"] = str(error)
    keep()


def _broken(self: Worker, task: Any, observe: Any = None) -> Any:
    raise UserError("The picture of a cat is broken.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
