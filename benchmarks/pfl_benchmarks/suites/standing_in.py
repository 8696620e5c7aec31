"""A published federation with another benchmark's tasks: its clients, models and settings, where its data are not.

Client k of the federation has the tasks of client k of the stand-in; a smaller stand-in starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfl_benchmarks.suites import sheet
from pfl_benchmarks.suites.loading import built_in
from pfl_benchmarks.suites.options import SuiteOptions
from pfl_platform.data import Benchmark, ClientData, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager


@dataclass(frozen=True)
class StandingIn:
    """Implements `Benchmark`."""

    name: str
    clients: tuple[ClientData, ...]
    source: Benchmark
    defaults: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def unseen(self) -> tuple[TaskData, ...]:
        return self.source.unseen

    def public(self, name: str | None, size: int, seed: int) -> Sequence[Sample]:
        return self.source.public(name, size, seed)

    def digest(self) -> str:
        who = [(client.client_id, client.backbone) for client in self.clients]
        return f"{self.name}:{who!r}:{self.source.digest()}"


def standing_in(name: str, options: SuiteOptions, make: Callable[..., Benchmark] | None = None) -> StandingIn:
    """The federation `name` on the tasks of `options.stand_in`. make: how that benchmark is made, by name and options;
    by its files when nothing is said."""
    if options.scenario is not None or options.root is not None:
        raise UserError("The tasks of a stand-in have no files of their own; leave out 'root' and 'scenario'.")
    manager = PluginManager()
    source = (make or (lambda *what: manager.make("benchmark", *what)))(str(options.stand_in), {})
    if not source.clients:
        raise UserError(f"The benchmark '{options.stand_in}' has no clients, so it stands in for nobody.")
    clients = tuple(
        ClientData(client.client_id, client.model_id, source.clients[index % len(source.clients)].tasks)
        for index, client in enumerate(built_in(name, options))
    )
    title = sheet.card(name)["title"]
    note = (
        f"The tasks are those of '{source.name}', in the places of {title}'s: results are not comparable with "
        f"published ones."
    )
    return StandingIn(name, clients, source, sheet.settings(name), (note,))
