"""What is checked of a federation before anything is written: clients, components, modality, adapters, learning rates.

Rows that are too long have a page of their own, `rows`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from pfl_platform.adapters.surfaces import Keys, Scope, Site
from pfl_platform.backbones import Backbone
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark, ClientData, TaskData
from pfl_platform.errors import UserError
from pfl_platform.federation import heads
from pfl_platform.federation.components import Component, Federation
from pfl_platform.federation.rounds import Parts, context, trains
from pfl_platform.federation.tasks import Share
from pfl_platform.plugins import available
from pfl_platform.recipes import method_file
from pfl_platform.settings import read
from pfl_platform.store.run_folder import safe_name


def check_clients(benchmark: Benchmark) -> None:
    """Clients exist, have different ids, and have data to train on."""
    seen: set[str] = set()
    if not benchmark.clients:
        raise UserError(f"The benchmark '{benchmark.name}' has no clients.")
    for client in benchmark.clients:
        if client.client_id in seen:
            raise UserError(f"Two clients of '{benchmark.name}' have the id '{client.client_id}'.")
        seen.add(client.client_id)
        if ":" in client.client_id or client.client_id == "*":  # the owner in a cell's key; "all others" in settings
            raise UserError(
                f"The client id '{client.client_id}' of '{benchmark.name}' is '*' or holds a colon; choose another."
            )
        safe_name(client.client_id)
        if client.num_examples == 0:
            raise UserError(f"The client '{client.client_id}' of '{benchmark.name}' has no training samples.")
        names = [task.name for task in client.tasks]
        if len(set(names)) != len(names):
            raise UserError(f"The client '{client.client_id}' of '{benchmark.name}' has two tasks of the same name.")
        if empty := next((task.name for task in client.tasks if not task.train), None):
            raise UserError(
                f"The task '{empty}' of client '{client.client_id}' of '{benchmark.name}' has no training samples."
            )


def check_components(config: RunConfig, parts: Parts) -> None:
    """Objective, aggregator and adapter agree on what they exchange; rounds that are to be kept are there."""
    parts.recipe()  # a personalizer that cannot evaluate this objective says so
    if config.keep_rounds and max(config.keep_rounds) > config.rounds:
        raise UserError(f"keep_rounds names round {max(config.keep_rounds)}, but the run has {config.rounds}.")
    for component in parts.components:
        needed = component.needs.adapters
        if needed and config.adapter.name not in needed:
            raise UserError(
                f"{type(component).__name__} works with the adapters {', '.join(needed)}, "
                f"not with '{config.adapter.name}'."
            )
        if component.needs.full_cohort and config.partial:
            raise UserError(
                f"{type(component).__name__} needs every client in every round; leave `cohort` at 0 and "
                "`participation.availability` empty."
            )
    needs = parts.aggregator.needs
    up, down = _slots(parts.objective.up), _slots(parts.objective.down)
    who, whom = config.aggregator.name, config.objective.name
    if needs.combines == "keys" and parts.objective.needs.own_keys:
        raise UserError(
            f"The aggregator '{who}' combines params key by key, A with A and B with B, but under the objective "
            f"'{whom}' a key means something else at every client; choose an aggregator that merges deltas."
        )
    for slot in needs.consumes:
        if slot not in up and not (slot == "*" and up):
            wanted = "updates" if slot == "*" else f"keys '{slot}/...'"
            sends = ", ".join(f"'{name}/...'" for name in sorted(up)) or "nothing"
            raise UserError(f"The aggregator '{who}' needs {wanted}, but the objective '{whom}' sends {sends}.")
    for slot in sorted(up if "*" in needs.replies else set(needs.replies)):
        if slot not in down:
            takes = ", ".join(f"'{name}/...'" for name in sorted(down)) or "nothing"
            raise UserError(f"The aggregator '{who}' replies with keys '{slot}/...', but '{whom}' takes in {takes}.")
    if config.engine.compile != "off" and parts.objective.mixes:
        raise UserError(
            f"Weights that the objective '{config.objective.name}' learns in every layer would cut a block into pieces "
            "that are not worth compiling; leave out engine.compile."
        )


def _slots(shares: Sequence[Share]) -> set[str]:
    return {pattern.split("/")[0] for share in shares for pattern in share.keys.patterns}


def check_modality(
    config: RunConfig,
    benchmark: Benchmark,
    backbone_of: Mapping[str, str],
    load: Callable[[str], Backbone],
    parts: Parts,
) -> None:
    """Text-only backbones get no pictures, in training or evaluation; components get the modality that they need."""
    texts = [name for name in sorted(set(backbone_of.values())) if load(name).card.modality == "text"]
    options = config.evaluation
    # Who is asked about nobody else's tasks.
    alone = [name for name in texts if not options.others or (config.heads == "private" and load(name).task_head)]
    for client in benchmark.clients:
        name = backbone_of[client.client_id]
        reader = name if name in texts else next((text for text in texts if text not in alone), None)
        if reader is not None and any(_has_pictures(task) for task in client.tasks):
            raise UserError(
                f"The backbone '{reader}' reads text only, but samples of client '{client.client_id}' have pictures; "
                + ("choose a vision-language backbone." if reader == name else "set evaluation.others=false.")
            )
        for component in parts.components:
            if component.needs.modality not in (None, load(name).card.modality):
                raise UserError(f"{type(component).__name__} needs {component.needs.modality} backbones.")
            if component.needs.continues and (load(name).task_head or load(name).answer_side):
                raise UserError(
                    f"{type(component).__name__} needs backbones whose answers go on from the question, but '{name}' "
                    f"of client '{client.client_id}' chooses its answers or writes them apart; choose a decoder."
                )
    headless = [name for name in texts if config.heads != "private" or not load(name).task_head]
    if headless and options.unseen and any(_has_pictures(task) for task in benchmark.unseen):
        raise UserError(f"The backbone '{headless[0]}' reads text only, but unseen tasks have pictures.")


def check_others(fed: Federation, parts: Parts) -> None:
    """Backbones that are run at clients beside their own can read what clients have, as whoever runs them needs."""
    ours: tuple[tuple[Component, tuple[str, ...]], ...] = (
        (parts.objective, parts.objective.others(fed)),
        (parts.aggregator, parts.aggregator.runs(fed)),
    )
    for component, names in ours:
        for name in names:
            other = fed.load(name)
            what = f"{type(component).__name__} runs the backbone '{name}' beside the clients' own"
            if component.needs.continues and (other.task_head or other.answer_side):
                raise UserError(f"{what}, but that one chooses its answers or writes them apart; choose a decoder.")
            for client in fed.clients:
                if other.card.modality == "text" and any(_has_pictures(task) for task in client.tasks):
                    raise UserError(
                        f"{what}, but that one reads text only and client '{client.client_id}' has pictures."
                    )


def _has_pictures(task: TaskData) -> bool:
    return any(sample.pictures for part in (task.train, task.validation, task.test) for sample in part)


def check_returns(fed: Federation, parts: Parts) -> None:
    """Adapters come down whole where a server needs that."""
    if not parts.aggregator.needs.returns:
        return
    objective, ctx = parts.objective, context(fed, fed.clients[0], 0)
    steps = [step for phase in objective.phases(ctx) for step in phase.steps]
    trained = Keys(*(pattern for step in steps for pattern in step.train.patterns))
    down = Keys(*(pattern for share in objective.down for pattern in share.keys.patterns))
    own = ctx.start(*(slot.name for slot in objective.slots if slot.scope == "client"))
    if kept := [key for key in own if key in trained and key not in down]:
        raise UserError(
            f"With these options the aggregator '{fed.config.aggregator.name}' adds what it merges to the backbone, "
            f"but under the objective '{fed.config.objective.name}' clients keep '{kept[0]}', which would count twice; "
            "choose an objective whose adapters come down whole."
        )


def check_equal_adapters(fed: Federation, parts: Parts) -> None:
    """Clients whose params the aggregator combines have adapters of the same signature, unless it can do without."""
    needs = parts.aggregator.needs
    if not fed.own_adapters or "adapter" not in needs.equal:
        return
    slots = [slot.name for slot in parts.objective.slots if slot.name in needs.consumes or "*" in needs.consumes]
    for share in parts.objective.up:
        for group in _groups(fed, share.scope):
            sharing = [client for client in group if _shares(fed, client, share, slots)]
            if len(sharing) > 1 and (clause := fed.unequal(sharing)):
                raise UserError(
                    f"The aggregator '{fed.config.aggregator.name}' combines adapters, which must be of one shape, but "
                    f"{clause}; give these clients the same options, or choose a method that combines nothing."
                )


def _groups(fed: Federation, scope: Scope) -> Iterable[list[str]]:
    """Clients whose params of this scope are combined."""
    everybody = [client.client_id for client in fed.clients]
    if scope == "all":
        return [everybody]
    return [[client for client in everybody if fed.backbone_of[client] == name] for name in fed.backbones]


def _shares(fed: Federation, client_id: str, share: Share, slots: Sequence[str]) -> bool:
    """Whether a client's adapter has keys that the share covers."""
    sites: Sequence[Site] = fed.adapter_of(client_id).sites(fed.load(fed.host_of(client_id)))
    places = ["/".join(pattern.split("/")[:2]) for pattern in share.keys.patterns]  # slot and site, whatever the part
    return any(
        fnmatch.fnmatchcase(f"{slot}/{site.name}", place) for place in places for slot in slots for site in sites
    )


def check_rates(fed: Federation, parts: Parts) -> None:
    """Every pattern of `training.lr_scale` matches something that trains.

    Patterns that the method or the benchmark proposes are left alone: they are written for the method's own adapter,
    and under another one there may be nothing that they could mean.
    """
    open_patterns = set(fed.config.training.lr_scale) - _proposed_patterns(fed)
    known: set[str] = set()
    hosts = {fed.host_of(client.client_id): client for client in fed.clients}
    for client in hosts.values():
        if not open_patterns:
            return
        trained = set(_trained_keys(fed, parts, client))
        known |= trained
        open_patterns = {pattern for pattern in open_patterns if not any(key in Keys(pattern) for key in trained)}
    if open_patterns:
        pattern = min(open_patterns)
        near = difflib.get_close_matches(pattern, sorted(known), n=3, cutoff=0.0)
        raise UserError(
            f"The pattern '{pattern}' of training.lr_scale matches no key that trains; the nearest keys are "
            + ", ".join(f"'{key}'" for key in near)
            + "."
        )


def _proposed_patterns(fed: Federation) -> set[str]:
    method = available("method").get(fed.config.method)
    settings = [fed.benchmark.defaults, read(method_file(method)) if method is not None else {}]
    presets = [part.get("methods", {}).get(fed.config.method) or {} for part in settings]
    return {pattern for part in (*settings, *presets) for pattern in (part.get("training") or {}).get("lr_scale") or {}}


def _trained_keys(fed: Federation, parts: Parts, client: ClientData) -> Iterator[str]:
    """The keys that a client's steps train, in any of the first hundred rounds or the last."""
    objective, rounds = parts.objective, fed.config.rounds
    trained = [
        step.train
        for round_index in {*range(min(rounds, 100)), rounds - 1}
        for phase in trains(context(fed, client, round_index), parts)
        for step in phase.steps
    ]
    adapter, backbone = fed.adapter_of(client.client_id), fed.load(fed.host_of(client.client_id))
    keys = [key for slot in objective.slots for key in adapter.initial(backbone, slot.name, fed.seed)]
    keys += heads.initial(fed, client.client_id, objective.slots)
    with torch.random.fork_rng(devices=[]):
        for name, make in objective.mixes.items():
            for site in adapter.sites(backbone):
                keys += [f"{name}/{site.name}/{part}" for part, _ in make(site).named_parameters()]
    return (key for key in keys if any(key in chosen for chosen in trained))
