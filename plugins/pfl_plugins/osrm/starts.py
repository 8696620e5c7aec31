"""Two exchanges before round 0: features go up, and each client gets its first A (Algorithm 1, lines 1 to 10)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Site, Tensors
from pfl_platform.data import ClientData, Sample
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation
from pfl_platform.federation.tasks import Address, Program, Share, Task
from pfl_platform.rng import numpy_rng, seed_of
from pfl_platform.training.streams import Epochs, Pooled, begun
from pfl_plugins.osrm.config import Config
from pfl_plugins.osrm.features import INPUTS, NAME, ROWS, Features, rows_key
from pfl_plugins.osrm.subspace import quietest, stacked

logger = logging.getLogger(__name__)
FACTOR = "start"
"""First part of the keys under which an A comes down."""


def starts(fed: Federation, config: Config, slot: str) -> Program[dict[str, Address]]:
    """The first A of every client, by the address of its tensors `<slot>/<site>/A`. A client that is alone on its
    backbone has nobody to keep away from: it is asked for nothing and is not in the result."""
    others = {client.client_id: neighbours(fed, client.client_id) for client in fed.clients}
    asked = [client for client in fed.clients if others[client.client_id]]
    for client in fed.clients:
        if client not in asked:
            name = client.client_id
            logger.warning(
                "Client '%s' is the only one on %s; it keeps the adapter's ordinary start.", name, fed.backbone_of[name]
            )
    if not asked:
        return {}
    tasks = {client.client_id: features_task(fed, config, client) for client in asked}
    measured = yield list(tasks.values())
    rows = {name: measured[task.actor].message for name, task in tasks.items()}
    answers = {}
    for name, task in tasks.items():
        chosen = chosen_for(fed, config, name, [fed.store.get(rows[other]) for other in others[name]])
        answers[name] = Task(
            actor=f"start of {name}",
            stage="prepare",
            round_index=0,
            backbone=task.backbone,
            state=measured[task.actor].state,
            inbox=fed.store.put(chosen),
            receive=Unfold(sites_of(fed, name), slot),
            salt=fed.salt,
        )
    taken = yield list(answers.values())
    return {name: taken[task.actor].new_state for name, task in answers.items()}


def neighbours(fed: Federation, client_id: str) -> list[str]:
    """The other clients on a client's backbone, in an order that does not depend on the benchmark's."""
    backbone = fed.backbone_of[client_id]
    return sorted(name for name, other in fed.backbone_of.items() if other == backbone and name != client_id)


def sites_of(fed: Federation, client_id: str) -> tuple[Site, ...]:
    return fed.adapter_of(client_id).sites(fed.load(fed.host_of(client_id)))


def features_task(fed: Federation, config: Config, client: ClientData) -> Task:
    """One client's pass over its samples; only the rows leave it."""
    training, name = fed.config.training, client.client_id
    source = Epochs(
        picked(fed, client, config), training.micro_batch or training.batch_size, fed.seed, NAME, shuffle=False
    )
    statistic = Features(sites_of(fed, name), source, source.steps(), config.variant, config.noise, config.samples)
    return Task(
        actor=f"features of {name}",
        stage="prepare",
        round_index=0,
        backbone=fed.host_of(name),
        frozen=fed.frozen.get(fed.host_of(name)),
        statistics=(statistic,),
        up=(Share(ROWS, "backbone"),),
        salt=fed.salt,
    )


def picked(fed: Federation, client: ClientData, config: Config) -> list[Sample]:
    """k samples of a client, drawn without replacement; all, if there are no more. Of all its tasks, or of the first
    where they come one after another: nothing else is there before training."""
    run = fed.config
    total = run.rounds * run.local_steps
    tasks = client.tasks if run.local_epochs else begun(client, run.stream.protocol, 1, total)
    pool = Pooled([task.train if config.split == "train" else task.validation for task in tasks])
    if not len(pool):
        raise UserError(
            f"Client '{client.client_id}' has no {config.split} samples for OSRM; set objective.options.split=train."
        )
    size = min(config.samples, len(pool))
    drawn = numpy_rng(fed.seed, "osrm", "samples", client.client_id).choice(len(pool), size=size, replace=False)
    return [pool[int(index)] for index in sorted(drawn)]


def chosen_for(fed: Federation, config: Config, client_id: str, others: Sequence[Tensors]) -> dict[str, Tensor]:
    """One A per input, float32 (r, d_in), from the rows that the other clients sent."""
    first = fed.adapter_of(client_id).initial(fed.load(fed.host_of(client_id)), "first", fed.seed)
    chosen = {}
    for site in sites_of(fed, client_id):
        key = rows_key(site.name)
        if key in others[0]:
            rows = stacked(tensors[key] for tensors in others)
            rank = first[f"first/{site.name}/A"].shape[0]
            seed = seed_of(fed.seed, "osrm", "subspace", client_id, site.name)
            chosen[f"{FACTOR}/{site.name}/A"] = quietest(rows, rank, seed, config.tol).float()
    return chosen


@dataclass(frozen=True)
class Unfold:
    """At the client: the A of an input becomes the first A of every site that reads it."""

    sites: tuple[Site, ...]
    slot: str

    def __call__(self, state: dict[str, Tensor], inbox: Tensors) -> Mapping[str, Tensor]:
        found = {}
        for site, index in zip(self.sites, state[INPUTS].tolist(), strict=True):
            found[f"{self.slot}/{site.name}/A"] = inbox[f"{FACTOR}/{self.sites[index].name}/A"]
        return found


def received(fed: Federation, client_id: str, slot: str) -> dict[str, Tensor]:
    """A client's first A as `starts` left it in `Federation.prepared`; {} for one that was alone."""
    address = fed.prepared.get(client_id)
    return {} if address is None else fed.store.get(address, Keys(f"{slot}/*/A"))
