"""A run that has ended, opened again to score or measure more of it. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation
from pfl_platform.federation.session import pins
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Store
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.tuning import with_values


@dataclass(frozen=True)
class Ended:
    """The folder of a run that has ended, and what the run is made of."""

    folder: RunFolder
    setup: Setup

    @classmethod
    def open(cls, out: Path, plugins: PluginManager | None, benchmark: Benchmark | None) -> Ended:
        """Raises `UserError` for a run that has not ended, or can no longer be run with the same numbers."""
        folder = RunFolder.ended(out)
        tuned = folder.read_tuning()  # the values that it chose for itself are those it ended with
        config = with_values(folder.config, tuned["chosen"]) if tuned else folder.config
        setup = build(config, plugins or PluginManager(), benchmark)
        if changed := folder.check_pins(pins(setup)):
            raise UserError(f"The run {out} cannot be evaluated with the same numbers: {' '.join(changed)}")
        return cls(folder, setup)

    @property
    def config(self) -> RunConfig:
        return self.setup.config

    def federation(self, store: Store | None = None, setup: Setup | None = None) -> Federation:
        """The federation as the run's preparation left it.

        store: default the run's own, to which what is made is added. setup: in place of the run's.
        """
        fed = (setup or self.setup).federation(self.folder.store if store is None else store)
        fed.frozen.update((self.folder.read_prepare() or {}).get("frozen", {}))
        return fed
