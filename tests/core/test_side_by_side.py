"""Clients that train side by side against the same clients one after another, on a tiny random text model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.lanes import Lanes, hindrance
from pfl_platform.adapters.surfaces import AdapterType, Keys, Mix, Slot
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import RunStopped
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.lanes import Side, SideBySide
from pfl_platform.training.loop import Actor, Trained, training
from pfl_platform.training.loop import alone as by_itself
from pfl_platform.training.losses import answer_loss, answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Step, View

pytestmark = pytest.mark.usefixtures("one_thread")
SLOTS = (Slot("local"), Slot("global"))
BOTH: Mix = {"local": 0.5, "global": 1.0}
WORDS = ("red", "blue", "round", "big", "left", "green and small", "square")
OPTIM = Optim(1e-3, weight_decay=0.1, clip=0.5)


@dataclass
class Place:
    adapter: AdapterType
    host: Host
    lanes: Lanes


@cache
def place(name: str, rank: int, dropout: float = 0.0) -> Place:
    manager = PluginManager()
    adapter = manager.make("adapter", name, {"r": rank, "dropout": dropout})
    host = Host(manager.make("backbone", "tiny-llama-s", {"init": 0}), adapter, SLOTS)
    host.load(adapter.frozen(host.backbone, 0))
    return Place(adapter, host, Lanes(host, 5))


def samples(client: int, count: int) -> list[Sample]:
    """Questions whose length goes by the client."""
    return [
        Sample(f"{client}-{k}", (Turn(f"Say {WORDS[(k + client) % 7]}{' please' * (client * k % 5)}.", WORDS[k % 7]),))
        for k in range(count)
    ]


def first(where: Place, client: int) -> dict[str, Tensor]:
    """Params of which none is zero, so that every one has a gradient."""
    found = {}
    for slot in ("local", "global"):
        for key, value in where.adapter.initial(where.host.backbone, slot, client).items():
            found[key] = value + 0.05 * torch.randn(value.shape, generator=torch_rng(key, client))
    return found


def phase(where: Place, client: int, amount: int = 5, *, rows: int = 2, mix: Mix = BOTH, **changes: Any) -> Phase:
    keys = Keys(*where.adapter.trainable("local").patterns, *where.adapter.trainable("global").patterns)
    step = Step(keys, answers_under(mix), changes.pop("optim", OPTIM))
    data = Epochs(samples(client, 3 * rows - 1), rows, 0, str(client))  # the last batch of a pass is smaller
    return Phase("p", (step,), amount, data, **changes)


def actor(host: Host, client: int, meter: FlopMeter | None = None, **more: Any) -> Actor:
    return Actor(str(client), "own", lambda _: host, lambda *p: torch_rng(client, *p), TorchDriver(), {}, meter, **more)


Ends = list[tuple[Trained, dict[str, Tensor]]]


def both(where: Place, phases: Sequence[Phase], *, metered: bool = False) -> tuple[Ends, Ends, list[FlopMeter]]:
    """What comes of clients one after another, and side by side; the meters of both, which take their time."""
    one, other, meters = [], [], []
    for client, part in enumerate(phases):
        where.host.load(first(where, client))
        meters.append(FlopMeter())
        with meters[-1].watching(where.host, ("local", "global")):
            done = by_itself(training(actor(where.host, client, meters[-1] if metered else None), (part,)))
        one.append((done, where.host.read(sorted(where.host.params))))
    sides = [Side[Trained](number) for number in range(len(phases))]
    works = []
    for client, (part, side) in enumerate(zip(phases, sides, strict=True)):
        lane = where.lanes.lanes[client]
        lane.load(first(where, client))
        works.append(training(actor(lane, client, side.meter if metered else None, clock=side.clock), (part,)))
    watched = [side.meter.watching(where.lanes.lanes[side.lane], ("local", "global")) for side in sides]
    for watch in watched:
        watch.__enter__()
    try:
        done_all = SideBySide[Trained](where.lanes).carry_out(sides, works)
    finally:
        for watch in watched:
            watch.__exit__(None, None, None)
    for side, done in zip(sides, done_all, strict=True):
        lane = where.lanes.lanes[side.lane]
        other.append((done, lane.read(sorted(lane.params))))
    return one, other, meters + [side.meter for side in sides]


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative difference of all tensors together."""
    a, b = (torch.cat([found[key].double().flatten() for key in sorted(one)]) for found in (one, other))
    return float((a - b).norm() / a.norm())


def agree(one: Ends, other: Ends, bound: float = 1e-5) -> None:
    for (mine, params), (theirs, beside) in zip(one, other, strict=True):
        assert mine.losses.keys() == theirs.losses.keys()
        for name, losses in mine.losses.items():
            assert theirs.losses[name] == pytest.approx(losses, rel=bound)
        differs = apart(params, beside)
        assert differs <= bound


@settings(max_examples=3, deadline=None)
@given(
    adapter=st.sampled_from(["lora", "pqlora"]),
    rank=st.sampled_from([1, 4]),
    clients=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 2])), min_size=2, max_size=4),
    micro=st.sampled_from([0, 1, 2]),
)
def test_any_number_lengths_and_ends(adapter: str, rank: int, clients: list[tuple[int, int]], micro: int) -> None:
    """clients: how many steps each takes, and of how many rows; who is done leaves the others alone."""
    where = place(adapter, rank)
    phases = [
        phase(where, number, amount, rows=rows, micro_batch=micro) for number, (amount, rows) in enumerate(clients)
    ]
    one, other, _ = both(where, phases)
    agree(one, other)


@pytest.mark.parametrize("adapter", ["lora", "pqlora"])
def test_gradients(adapter: str) -> None:
    """A first step's moments are a tenth of the gradient; nothing is clipped and nothing moves."""
    where = place(adapter, 4)
    still = Optim(0.0, clip=0.0)
    one, other, _ = both(where, [phase(where, number, 1, optim=still) for number in range(3)])
    for (mine, _), (theirs, _) in zip(one, other, strict=True):
        names = [name for name in mine.private if name.endswith("#1")]
        assert len(names) > 20
        for name in names:
            assert apart({name: mine.private[name]}, {name: theirs.private[name]}) <= 1e-5, name
    assert other[0][0].private[names[0]].norm() > 0


def test_mixes_of_numbers_that_differ_go_by_row() -> None:
    where = place("lora", 4)
    one, other, _ = both(where, [phase(where, k, mix={"local": 0.2 * k, "global": 1.0}) for k in range(3)])
    agree(one, other)
    assert apart(one[0][1], one[2][1]) > 1e-3


def test_dropout_is_what_each_client_has_alone() -> None:
    where = place("lora", 4, 0.4)
    one, other, _ = both(where, [phase(where, number, 2) for number in range(3)])
    agree(one, other)
    assert one[0][0].losses != both(place("lora", 4), [phase(where, 0, 2)])[0][0][0].losses  # it is there


def test_losses_with_several_passes_notes_and_penalties() -> None:
    """A loss that asks for two passes, the other without gradient; a second step that takes the first one's note."""
    where = place("lora", 4)

    def two(view: View) -> Tensor:
        target = view.forward({"global": 1.0}, grad=False, whole=True).logits.softmax(-1)
        output = view.forward({"local": 1.0}, whole=True)
        view.notes["first"] = output.logits.detach()
        return answer_loss(output) + (output.logits.softmax(-1) - target).square().sum((1, 2))

    def note(view: View) -> Tensor:
        before = view.notes.pop("first")
        output = view.forward({"local": 0.5, "global": 0.5}, whole=True)
        return answer_loss(output) + 0.1 * (output.logits - before).square().mean((1, 2))

    def penalty(params: Any, _refs: Any) -> Tensor:
        return sum((value.square().sum() for key, value in params.items() if key.startswith("local/")), torch.zeros(()))

    steps = (
        Step(where.adapter.trainable("local"), two, OPTIM, penalty, "one"),
        Step(where.adapter.trainable("global"), note, OPTIM, None, "two"),
    )
    phases = [replace(phase(where, number, 2), steps=steps) for number in range(2)]
    one, other, _ = both(where, phases)
    agree(one, other)


def test_each_client_is_charged_what_it_costs_alone() -> None:
    where = place("lora", 4)
    _, other, meters = both(where, [phase(where, number, 1 + number) for number in range(2)], metered=True)
    for one, beside in zip(meters[:2], meters[2:], strict=True):
        assert beside.formula == one.formula > 0
        assert beside.passes == one.passes
        assert beside.tokens == one.tokens
        assert beside.total == pytest.approx(one.total)
    assert all(done.seconds > 0 for done, _ in other)


def test_a_pass_is_one_for_all() -> None:
    where, calls = place("lora", 4), []
    hook = where.host.backbone.model.register_forward_pre_hook(
        lambda _m, _a, inputs: calls.append(len(inputs["input_ids"])), with_kwargs=True
    )
    lanes = [replace(phase(where, number, 3), micro_batch=0) for number in range(4)]
    works = [training(actor(where.lanes.lanes[number], number), (part,)) for number, part in enumerate(lanes)]
    for number in range(4):
        where.lanes.lanes[number].load(first(where, number))
    SideBySide[Trained](where.lanes).carry_out([Side[Trained](number) for number in range(4)], works)
    hook.remove()
    assert calls == [8, 8, 4]  # three steps of two rows each, the last of one; not twelve passes
    assert not any(layer.by_row for layer in where.host.layers.values())
    assert not where.host.control.parts


def test_who_breaks_is_named() -> None:
    where = place("lora", 4)

    def broken(view: View) -> Tensor:
        return answer_loss(view.forward({"local": 1.0})) * (float("nan") if view.step == 1 else 1.0)

    bad = replace(phase(where, 1), steps=(Step(where.adapter.trainable("local"), broken, OPTIM),))
    works = [
        training(actor(where.lanes.lanes[number], number), (part,))
        for number, part in enumerate([phase(where, 0), bad])
    ]
    with pytest.raises(RunStopped, match="The loss of 1 is nan in phase 'p' at local step 1"):
        SideBySide[Trained](where.lanes).carry_out([Side[Trained](0), Side[Trained](1)], works)
    assert not where.host.control.mix


def test_an_adapter_must_take_params_by_row() -> None:
    host = place("lora", 4).host
    assert not hindrance(host)
    layer = next(iter(host.layers.values()))
    kind = type(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "row_parts", frozenset({"A"}))
        assert hindrance(host) == "the adapter does not take params by row"
