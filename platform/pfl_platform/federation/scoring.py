"""Adapters that lie in folders, a merged one for example, on the tasks of a finished run's clients. Nothing is trained.

An adapter is laid over the bare backbone as a dense delta with its offset, so that it may have any rank and alpha,
whatever the run's own adapters have. A task head is no part of it: each client answers with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pfl_platform.adapters.folders import CONFIG, PREFIX, AdapterFolder, open_adapter
from pfl_platform.adapters.host import BASE, Host
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.data import Benchmark, ClientData
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.matrix import values_of
from pfl_platform.evaluation.surfaces import InferenceRecipe, Split
from pfl_platform.federation.cells import own_cells
from pfl_platform.federation.components import Federation
from pfl_platform.federation.ended import Ended
from pfl_platform.federation.records import progress_of
from pfl_platform.federation.rounds import Progress, score_task, taken_in
from pfl_platform.federation.session import numerics
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Address
from pfl_platform.naming import distinct
from pfl_platform.plugins import PluginManager
from pfl_platform.store.memory import Overlay

Say = Callable[[str], None]


def score(
    out: Path,
    adapters: Sequence[Path],
    *,
    split: Split | None = None,
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Scores of adapters on every client's own tasks, beside what the run itself ended with.

    adapters: folders that peft (or `merge`) has saved; or a folder with one of them for each
    client, under the client's name, as a run's `adapters` and the results of personal rules are. split: default as the
    run.

        split
        run        client -> Self of the run's own model, None where it was not scored on this split
        adapters   name -> {"clients": client -> {"self", "tasks": {name: score}}, "mean", "minimum"}

    Scores are from 0 to 100. Raises `UserError` for a run that has not ended and for adapters that do not fit its
    backbones.
    """
    run = Ended.open(out, plugins, benchmark)
    chosen: Split = split or run.config.evaluation.split
    found: dict[str, Any] = {}
    with numerics(run.config):
        scoring = _Scoring.of(run)
        given = {name: _per_client(scoring.fed, path) for name, path in zip(distinct(adapters), adapters, strict=True)}
        for name, owners in given.items():
            rows = {}
            for client in scoring.fed.clients:
                say(f"{name}, {client.client_id}")
                rows[client.client_id] = scoring.row(client, owners[client.client_id], chosen)
            known = [row["self"] for row in rows.values() if row["self"] is not None]
            found[name] = {
                "clients": rows,
                "mean": fmean(known) if known else None,
                "minimum": min(known, default=None),
            }
    results = run.folder.read_results() or {"clients": {}}
    own = {
        client: entry.get("self", {}).get("last") if chosen == run.config.evaluation.split else None
        for client, entry in results["clients"].items()
    }
    return {"split": chosen, "run": own, "adapters": found}


def _per_client(fed: Federation, path: Path) -> dict[str, AdapterFolder]:
    """Which adapter each client is scored with."""
    names = [client.client_id for client in fed.clients]
    if (path / CONFIG).exists() or not path.is_dir():
        shared = open_adapter(path, path.name, offsets=True)
        return dict.fromkeys(names, shared)
    missing = [name for name in names if not (path / name / CONFIG).exists()]
    if missing:
        raise UserError(
            f"{path} has no {CONFIG}, so it is no adapter; nor has it a folder with one for the client '{missing[0]}'."
        )
    return {name: open_adapter(path / name, name, offsets=True) for name in names}


@dataclass
class _Scoring:
    """A finished run, opened; what is added stays in memory."""

    setup: Setup
    fed: Federation
    worker: Worker
    progress: Progress
    last: int
    laid: dict[tuple[Path, str], Address]

    @classmethod
    def of(cls, run: Ended) -> _Scoring:
        store, record = Overlay(run.folder.store), run.folder.last_round()
        assert record is not None, "a run that has ended has rounds"
        worker = run.setup.worker(store)
        return cls(run.setup, run.federation(store), worker, progress_of(record), int(record["round_index"]), {})

    def row(self, client: ClientData, adapter: AdapterFolder, split: Split) -> dict[str, Any]:
        """One client's own tasks under an adapter."""
        name = client.client_id
        state = taken_in(self.fed, self.setup.parts, self.progress, name, self.setup.config.rounds)
        heads = Keys("head/*").of(state)
        task = replace(
            score_task(self.fed, self.setup.parts, self.progress, client, self.last),
            state=self.fed.store.put(heads) if heads else None,
            base=self._delta(adapter, name),
            base_bytes=0,
            statistics=(),
            score=own_cells(client),
            recipe=InferenceRecipe(({},)),
            split=split,
            heads={},
        )
        scores = self.worker.execute(task).scores
        return {
            "self": values_of(name, scores)["self"],
            "tasks": {key.partition(":")[2]: value for key, value in scores.items()},
        }

    def _delta(self, adapter: AdapterFolder, client_id: str) -> Address:
        """The adapter as `base/site/W` of a client's backbone."""
        name = self.fed.host_of(client_id)
        if (adapter.path, name) not in self.laid:
            host = self.worker.host(name)
            laid = {}
            for site, module in _sites(host, adapter):
                laid[f"{BASE}/{site}/W"] = adapter.delta(module).dense()
                if (offset := adapter.offset(module)) is not None:
                    laid[f"{BASE}/{site}/c"] = offset
            self.laid[adapter.path, name] = self.fed.store.put(laid)
        return self.laid[adapter.path, name]


def _sites(host: Host, adapter: AdapterFolder) -> list[tuple[str, str]]:
    """(site, module) of what the adapter adapts. Raises `UserError` where the backbone has no such map."""
    heads = tuple(f"{PREFIX}{path}." for path in host.backbone.task_head)
    if whole := [key for key in adapter.extra if not (heads and key.startswith(heads))]:
        raise UserError(
            f"{adapter.path} holds whole tensors beside its factors, such as '{whole[0]}', which cannot be laid over a "
            "backbone."
        )
    by_path = {layer.site.path: (name, layer) for name, layer in host.layers.items()}
    found = []
    for module in adapter.modules:
        if module not in by_path:
            raise UserError(
                f"{adapter.path} adapts '{module}', which no adapter of this run on '{host.backbone.name}' does."
                + nearest(module, by_path)
            )
        name, layer = by_path[module]
        d_out, _, d_in = adapter.shapes[module]
        if (d_out, d_in) != (layer.site.out_features, layer.site.in_features):
            raise UserError(
                f"{adapter.path} has '{module}' with {d_out} x {d_in} values; in '{host.backbone.name}' it has "
                f"{layer.site.out_features} x {layer.site.in_features}."
            )
        found.append((name, module))
    return found
