"""Task heads in a federation, under the run's policy `heads`, whatever the method.

    private   each client trains its own, and it never travels; a client's model answers another's task with that one's
              head, if both have the same backbone, and what this brings in is booked as `head_payload` and `head_wire`
    shared    trained, and averaged among the clients of a backbone, weighted by their numbers of examples
    frozen    as it is loaded

Methods need know nothing of it: the keys of the head are added to what every step trains, and taken out of the updates
before the aggregator sees them. Backbones without a head are not touched. A method that trains two models of a client
may give a slot a head of its own (`Slot.head`): steps that train this slot train that head and not the client's, and
where heads are shared, it is the one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from pfl_platform.adapters.heads import HEADS, OWN_HEADS, first_heads, head_of
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.evaluation.surfaces import Cell
from pfl_platform.federation.components import Federation, Update, Updates, combine
from pfl_platform.federation.tasks import Address, Cost, Outcome, Share
from pfl_platform.ledger.costs import total
from pfl_platform.training.surfaces import Phase, Step

ANY = Keys(*HEADS.patterns, *OWN_HEADS.patterns)
Receive = Callable[[dict[str, Tensor], Tensors], Mapping[str, Tensor]]


def has_head(fed: Federation, backbone: str) -> bool:
    return bool(fed.load(backbone).task_head)


def initial(fed: Federation, client_id: str, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The heads' part of a client's first state; {} where they do not train."""
    return first_heads(fed.load(fed.host_of(client_id)), fed.seed, slots) if fed.config.heads != "frozen" else {}


def trained(fed: Federation, client_id: str, phases: Sequence[Phase], slots: Sequence[Slot]) -> tuple[Phase, ...]:
    """An objective's phases, with the head's keys in every step. Moments of a shared head, which comes down anew, do
    not survive; those of a private one do, as far as the step keeps any."""
    if fed.config.heads == "frozen" or not has_head(fed, fed.backbone_of[client_id]):
        return tuple(phases)

    def with_head(step: Step) -> Step:
        if not step.train.patterns:
            return step
        own = [slot.name for slot in slots if slot.head and step.train.names(slot.name)]
        keys = [pattern for name in own for pattern in head_of(name).patterns] if own else [*HEADS.patterns]
        lost = shared_keys(slots).patterns if fed.config.heads == "shared" else ()
        optim = replace(step.optim, reset=Keys(*step.optim.reset.patterns, *lost))
        return replace(step, train=Keys(*step.train.patterns, *keys), optim=optim)

    return tuple(replace(phase, steps=tuple(map(with_head, phase.steps))) for phase in phases)


def shared_keys(slots: Sequence[Slot]) -> Keys:
    """The head that is averaged where heads are shared: that of slots which have their own, or the client's."""
    own = [pattern for slot in slots if slot.head for pattern in head_of(slot.name).patterns]
    return Keys(*own) if own else HEADS


def shares(fed: Federation, client_id: str, slots: Sequence[Slot]) -> tuple[Share, ...]:
    """What the head adds to the keys that leave a client."""
    shared = fed.config.heads == "shared" and has_head(fed, fed.backbone_of[client_id])
    return (Share(shared_keys(slots), "backbone"),) if shared else ()


def received(fed: Federation, heads: Mapping[str, Address], client_id: str) -> dict[str, Tensor]:
    """What a client's reply brings besides the aggregator's: the averaged head, once there is one."""
    address = heads.get(fed.backbone_of[client_id])
    return fed.store.get(address) if address is not None else {}


def receiving(receive: Receive | None) -> Receive:
    """Takes a shared head in, and gives the rest of the reply to the objective."""

    def both(state: dict[str, Tensor], inbox: Tensors) -> Mapping[str, Tensor]:
        rest = {key: value for key, value in inbox.items() if key not in ANY}
        return {**(receive(state, rest) if receive is not None else state), **ANY.of(inbox)}

    return both


def split(fed: Federation, updates: Updates, former: Mapping[str, Address]) -> tuple[Updates, dict[str, Address]]:
    """The updates without heads, and per backbone the address of the averaged head; a backbone of which no client took
    part keeps what it had."""
    if fed.config.heads != "shared":
        return updates, {}
    heads = dict(former)
    for backbone in sorted({update.backbone for update in updates if has_head(fed, update.backbone)}):
        group = [update for update in updates if update.backbone == backbone]
        examples = sum(update.num_examples for update in group)
        weights = [update.num_examples / examples for update in group]
        heads[backbone] = fed.store.put(combine((update.tensors(ANY) for update in group), weights))
    return Updates(tuple(rest for update in updates if (rest := _without(fed, update)) is not None)), heads


def _without(fed: Federation, update: Update) -> Update | None:
    """An update without the head; None when there was nothing else in it."""
    if not has_head(fed, update.backbone):
        return update
    rest = {key: value for key, value in update.tensors().items() if key not in ANY}
    return replace(update, address=fed.store.put(rest)) if rest else None


def measurable(fed: Federation, backbone: str, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that clients of a backbone can answer: with private heads only those for which one of them has a
    head."""
    if fed.config.heads != "private" or not has_head(fed, backbone):
        return tuple(cells)
    return tuple(cell for cell in cells if cell.owner and fed.backbone_of[cell.owner] == backbone)


def borrowed(
    fed: Federation, client_id: str, cells: Sequence[Cell], states: Mapping[str, Address]
) -> dict[str, Address]:
    """Owner -> the state whose head answers that owner's cells, for all that are not the client's own."""
    if fed.config.heads != "private" or not has_head(fed, fed.backbone_of[client_id]):
        return {}
    return {cell.owner: states[cell.owner] for cell in cells if cell.owner not in ("", client_id)}


def joined(training: Outcome | None, scoring: Outcome) -> Outcome:
    """One outcome of a client that was trained and then, with the heads that others have by now, scored."""
    if training is None:
        return scoring
    cost = Cost(**total([training.cost, scoring.cost]))  # type: ignore[arg-type]
    metrics = {**training.metrics, **scoring.metrics}
    return replace(
        training,
        metrics=metrics,
        scores=scoring.scores,
        predictions=scoring.predictions,
        cost=cost,
        messages={**training.messages, **scoring.messages},
    )
