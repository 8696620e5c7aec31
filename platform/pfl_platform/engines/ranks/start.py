"""Joins a launch: finds the other ranks, connects to the hub, and makes what a run is carried out with."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pfl_platform.config import EngineOptions, RunConfig
from pfl_platform.engines.ranks import zero
from pfl_platform.engines.ranks.engine import FollowingEngine, LeadingEngine
from pfl_platform.engines.ranks.grid import Grid
from pfl_platform.engines.ranks.hub import Hub
from pfl_platform.engines.ranks.link import Link, LinkStore
from pfl_platform.engines.ranks.place import SPREAD, Place, check_stage, settle_environment
from pfl_platform.engines.ranks.splitting import Offload
from pfl_platform.engines.ranks.together import Following, Leading
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Engine, Store
from pfl_platform.store.pins import software
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.training.driver import Driver

JOIN = 600.0
"""Seconds in which all ranks must have come."""
IDLE = timedelta(hours=12)
"""How long the ranks of a group may wait for each other; whether one has died is noticed by the hub, much sooner."""


@dataclass(frozen=True)
class Launch:
    """Implements `Carrier` for a rank of a launch."""

    place: Place
    grid: Grid
    together: Leading | Following

    def check(self, setup: Setup) -> None:
        check_run(setup, self.place)

    def create(self, path: Path, config: RunConfig, pins: Mapping[str, Any]) -> RunFolder:
        def made() -> None:
            RunFolder.create(path, config, pins)

        self.together.once(made)
        return RunFolder(path) if self.together.leads else Bystander(path, config)

    def open(self, path: Path) -> RunFolder:
        found = self.together.once(lambda: RunFolder.open(path).config.model_dump(mode="json"))
        return RunFolder(path) if self.together.leads else Bystander(path, RunConfig.model_validate(found))

    def store(self, folder: RunFolder) -> Store:
        if isinstance(self.together, Following):
            return LinkStore(self.together.link, speaks=self.place.shard == 0)
        self.together.hub.serve(folder.store)
        return folder.store

    def front(self, store: Store) -> Store:
        return store

    def driver(self, config: RunConfig) -> Driver:
        engine = config.engine
        return zero.ZeroDriver(engine.zero, self.grid, Offload(engine.offload, engine.offload_folder))

    def engine(self, worker: Worker, observers: Sequence[Observer]) -> Engine:
        if isinstance(self.together, Following):
            return FollowingEngine(worker, observers, self.together, self.place.group)
        return LeadingEngine(worker, observers, self.together, self.place.groups)


class Bystander(RunFolder):
    """Stands for the run folder at a rank that does not write it."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        super().__init__(path)
        self._config = config

    @property
    def config(self) -> RunConfig:
        return self._config

    def lock(self) -> nullcontext[None]:
        return nullcontext()

    def commit_round(self, index: int, record: Mapping[str, Any]) -> None:
        pass

    def collect_garbage(self, *args: Any, **options: Any) -> Any:
        pass

    def _write_json(self, file: Path, content: Mapping[str, Any]) -> None:
        pass

    def _forget_outcomes(self) -> None:
        pass


class Refused(UserError):
    """A launch cannot carry out a run; every rank finds that by itself."""


def check_run(setup: Setup, place: Place) -> None:
    """Whether a run can be carried out in these places."""
    engine = setup.config.engine
    if engine.name != "deepspeed":
        raise Refused(f"The run's engine is '{engine.name}'; it needs no launcher.")
    if engine.shards != place.shards:
        raise Refused(f"The run has {engine.shards} shards and this launch {place.shards}; one launch has one grid.")
    check_stage(engine.zero, place.shards, engine.offload)
    if engine.zero == SPREAD and setup.own_hosts:
        client = next(iter(setup.own_hosts))
        raise Refused(
            f"Under ZeRO stage 3 the clients of a backbone have one kind of adapter; '{client}' has options of its own."
        )
    packed = [name for name in sorted(set(setup.backbone_of.values())) if setup.load(name).few]
    if engine.zero == SPREAD and packed:
        raise Refused(
            f"ZeRO stage 3 spreads weights in full; '{packed[0]}' holds them in fewer bits, so leave out one."
        )
    if place.groups > (clients := len(setup.benchmark.clients)):
        shared = "" if place.shards == 1 else f", {place.shards} for each client"
        raise Refused(f"There are {place.size} ranks{shared}, and {clients} clients; start no more than they need.")


def gridded(place: Place, shards: int) -> Place:
    """The place in a grid of groups with so many shards."""
    if shards > place.size:
        raise UserError(f"{shards} shards need as many ranks; there are {place.size}.")
    if place.size % shards:
        raise UserError(f"{place.size} ranks cannot be divided into groups of {shards} shards.")
    return replace(place, shards=shards)


@contextmanager
def joined(place: Place, options: EngineOptions) -> Iterator[Launch]:
    """This rank's part in a launch, from its connection to its end. What goes wrong at a rank that follows is told to
    rank 0, which says it."""
    place = gridded(place, options.shards)
    settle_environment(place)
    device = device_of(options.device, place)
    store = _connected(place, "nccl" if device == "cuda" else "gloo")
    together = _lead(place, store) if place.rank == 0 else _follow(place, store)
    try:
        zero.connect(device)
        launch = Launch(place, Grid(place), together)
        about = {"versions": software()}
        if isinstance(together, Leading):
            together.hub.wait_for_all()
        together.agree(about)
        yield launch
        if isinstance(together, Following):
            together.link.bye()
    except Exception as error:
        if isinstance(together, Leading):
            first = together.hub.wrong
            if first is not None and first is not error and isinstance(error, RunStopped):
                raise type(first)(f"{first} {error}") from error  # the launcher was faster than we, and stopped us
            raise
        together.link.failed(_sentence(place, error), stopped=isinstance(error, RunStopped))
        if not isinstance(error, UserError):
            raise
    finally:
        if isinstance(together, Leading):
            together.hub.close()


def _sentence(place: Place, error: Exception) -> str:
    """What rank 0 says for another; a user's error is as good as its own."""
    if isinstance(error, UserError):
        return str(error)
    return f"Rank {place.rank} has failed: {type(error).__name__}: {error}"


def device_of(name: str, place: Place) -> str:
    """`cuda` or `cpu`; sets the GPU of this rank."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"The device '{name}' is asked for, and rank {place.rank} finds no GPU.")
    if place.local_rank >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise UserError(f"Rank {place.rank} is number {place.local_rank} on its machine, which has {there} GPUs.")
    torch.cuda.set_device(place.local_rank)
    return "cuda"


def _connected(place: Place, backend: str) -> Any:
    """Connects all ranks and returns the store in which they leave each other notes."""
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=timedelta(seconds=JOIN))))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=IDLE)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError("The launch's port is taken by another program; choose another MASTER_PORT.") from error
        raise UserError(
            f"Rank {place.rank} could not join the launch: {' '.join(str(error).split())[:200]}."
        ) from error
    return store


def _lead(place: Place, store: Any) -> Leading:
    listener = Listener(("", 0), backlog=place.size, authkey=(key := secrets.token_bytes(32)))
    address = {"host": _own_address(), "port": listener.address[1], "key": key.hex()}
    store.set("pfl-platform/hub", json.dumps(address))
    return Leading(Hub(listener, range(1, place.size), JOIN))


def _follow(place: Place, store: Any) -> Following:
    found = json.loads(store.get("pfl-platform/hub"))
    return Following(Link(Client((found["host"], found["port"]), authkey=bytes.fromhex(found["key"])), place.rank))


def _own_address() -> str:
    """Under which other ranks find this machine."""

    master = os.environ["MASTER_ADDR"]
    return master if master not in ("", "0.0.0.0") else socket.gethostname()
