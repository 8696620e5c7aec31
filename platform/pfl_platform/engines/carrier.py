"""What carries out a run: this process alone, or the ranks of a launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pfl_platform.config import RunConfig
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.tasks import Engine, Store
from pfl_platform.federation.together import Alone, Together
from pfl_platform.store.behind import Behind
from pfl_platform.store.disk import DiskStore
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.training.driver import Driver, TorchDriver

if TYPE_CHECKING:
    from pfl_platform.federation.setup import Setup


class Carrier(Protocol):
    """Makes what a run works with, in one process or in one of several."""

    @property
    def together(self) -> Together: ...

    def check(self, setup: Setup) -> None:
        """Raises `UserError` for a run that it cannot carry out."""
        ...

    def create(self, path: Path, config: RunConfig, pins: Mapping[str, Any]) -> RunFolder:
        """A new run folder, or what stands for it where another process has it."""
        ...

    def open(self, path: Path) -> RunFolder: ...

    def store(self, folder: RunFolder) -> Store: ...

    def front(self, store: Store) -> Store:
        """What workers read and write through."""
        ...

    def driver(self, config: RunConfig) -> Driver: ...

    def engine(self, worker: Worker, observers: Sequence[Observer]) -> Engine: ...


class InProcess:
    """Implements `Carrier` in this process."""

    together = Alone()

    def check(self, setup: Setup) -> None:
        if (name := setup.config.engine.name) != "inprocess":
            raise UserError(f"The engine '{name}' works in processes that a launcher starts; use `pfl-platform run`.")

    def create(self, path: Path, config: RunConfig, pins: Mapping[str, Any]) -> RunFolder:
        return RunFolder.create(path, config, pins)

    def open(self, path: Path) -> RunFolder:
        return RunFolder.open(path)

    def store(self, folder: RunFolder) -> Store:
        return folder.store

    def front(self, store: Store) -> Store:
        return Behind(store) if isinstance(store, DiskStore) else store

    def driver(self, config: RunConfig) -> Driver:
        return TorchDriver()

    def engine(self, worker: Worker, observers: Sequence[Observer]) -> Engine:
        return InProcessEngine(worker, observers)
