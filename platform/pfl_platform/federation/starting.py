"""Where a federation starts from: fresh adapters, or what the clients of a finished run ended with.

The start of a backbone is the mean, with equal weights, over that run's clients on it: of the params that they share
(slot `global`), or of their own (`local`) where the method has no others. It holds for every slot of the new run's
clients. Task heads, mixes and moments start afresh; what is frozen in the adapters (an aligned A, say) comes along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation, Objective, combine
from pfl_platform.federation.tasks import Store
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder

ROLES = ("global", "local")
"""Slots whose params start another run; the first that a client has."""


@dataclass(frozen=True)
class Start:
    """What a finished run has to start from. params: backbone -> `site/part` -> tensor; frozen: backbone -> tensors."""

    run: Path
    params: Mapping[str, Tensors]
    frozen: Mapping[str, Tensors]

    def lay(self, fed: Federation, objective: Objective, client_id: str, initial: Tensors) -> dict[str, Tensor]:
        """A client's first state, its slots as they start. Raises `UserError` where the adapters do not agree."""
        backbone = fed.backbone_of[client_id]
        if backbone not in self.params:
            raise UserError(f"The run {self.run} has no client on '{backbone}' to start '{client_id}' from.")
        given, state, used = self.params[backbone], dict(initial), set()
        slots = {slot.name for slot in objective.slots}
        for key, value in initial.items():
            slot, _, rest = key.partition("/")
            if slot not in slots:
                continue
            if rest not in given or given[rest].shape != value.shape:
                there = f"has {tuple(given[rest].shape)}" if rest in given else "has none"
                raise UserError(
                    f"'{client_id}' needs {tuple(value.shape)} for '{rest}', of which the run {self.run} {there}; "
                    "a start needs the same adapter, with the same rank and targets."
                )
            used.add(rest)
            state[key] = given[rest].to(value.dtype)
        if unused := sorted(set(given) - used):
            raise UserError(
                f"The run {self.run} adapts '{unused[0]}', which '{client_id}' does not; a start needs the same "
                "adapter."
            )
        return state


def start_of(fed: Federation) -> Start | None:
    """What the run's configuration names as its start; None for fresh adapters."""
    if not fed.config.start:
        return None
    folder = _finished(Path(fed.config.start))
    chosen = folder.config.objective
    objective: Objective = PluginManager().make("objective", chosen.name, chosen.options)
    if objective.needs.own_keys:
        raise UserError(
            f"In the run {folder.path} a key means something else at every client, so the mean of their adapters is no "
            "start."
        )
    record, prepared = folder.last_round(), folder.read_prepare() or {}
    results = folder.read_results() or {"clients": {}}
    states: Mapping[str, str] = record["states"] if record else {}
    members: dict[str, list[str]] = {}
    for client_id, entry in results["clients"].items():
        members.setdefault(entry["backbone"], []).append(client_id)
    store: Store = folder.store
    params = {
        backbone: _mean(store, [states[client_id] for client_id in clients], folder.path)
        for backbone, clients in members.items()
        if backbone in fed.backbones
    }
    frozen = {
        backbone: store.get(address)
        for backbone, address in prepared.get("frozen", {}).items()
        if backbone in fed.backbones
    }
    return Start(folder.path, params, frozen)


def digest_of(run: str) -> str:
    """Names what a run has to start from by its content."""
    folder = _finished(Path(run))
    record, prepared = folder.last_round() or {"states": {}}, folder.read_prepare() or {}
    parts = sorted(record["states"].items()) + sorted(prepared.get("frozen", {}).items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _finished(path: Path) -> RunFolder:
    folder = RunFolder.open(path)
    if folder.read_results() is None:
        raise UserError(f"The run in {path} is not finished, so nothing starts from it; pfl-platform resume {path}")
    return folder


def _mean(store: Store, addresses: list[str], run: Path) -> dict[str, Tensor]:
    """`site/part` -> mean over the clients of one backbone."""
    slots = [_slot(store, address, run) for address in addresses]
    return combine(slots, [1 / len(slots)] * len(slots))


def _slot(store: Store, address: str, run: Path) -> dict[str, Tensor]:
    for role in ROLES:
        if found := store.get(address, Keys(f"{role}/*")):
            return {key.partition("/")[2]: value for key, value in found.items()}
    raise UserError(f"The clients of the run {run} hold no adapter in a slot {' or '.join(ROLES)} to start from.")
