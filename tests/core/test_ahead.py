"""Batches read by a thread before their turn: the same training, one batch ahead and no more."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot, Tensors
from pfl_platform.backbones import Encoded
from pfl_platform.data import Sample
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.testing.bench import samples
from pfl_platform.training.ahead import worth_it
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs, OpenEpochs
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_platform.training.view import BatchView

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4


class Noted(OpenEpochs):
    """Says when it is asked for a batch."""

    def __init__(self, source: Epochs, events: list[Any]) -> None:
        super().__init__(source)
        self._events = events

    def batch(self, step: int) -> list[Sample]:
        self._events.append(("made", step, threading.current_thread() is threading.main_thread()))
        return super().batch(step)


class Noting(Epochs):
    events: list[Any]

    def open(self, private: Tensors) -> OpenEpochs:
        return Noted(self, self.events)


def trained(ahead: bool, micro: int, events: list[Any], broken: int | None = None) -> Tensors:
    """Params after some steps on pictures; what happened when, and whether in the main thread."""
    manager = PluginManager()
    adapter = manager.make("adapter", "lora", {"r": 2, "dropout": 0.1})
    host = Host(manager.make("backbone", "tiny-llava-llama-s", {"init": 0}), adapter, (Slot("local"),))
    host.load(adapter.initial(host.backbone, "local", 0))
    read = host.read_batch

    def reading(found: Sequence[Sample], **options: Any) -> Encoded:
        events.append(("read", len(found), threading.current_thread() is threading.main_thread()))
        if broken is not None and sum(event[0] == "read" for event in events) > broken:
            raise OSError("a picture is broken")
        return read(found, **options)

    host.read_batch = reading  # type: ignore[method-assign]
    loss = answers_under({"local": 1.0})

    def noted(view: BatchView) -> torch.Tensor:
        events.append(("step", view.step, True))
        return loss(view)

    data = Noting(samples("ahead", 12), 4, 0, "test")
    object.__setattr__(data, "events", events)
    step = Step(adapter.trainable("local"), noted, Optim(0.01))  # type: ignore[arg-type]
    phase = Phase("p", (step,), STEPS, data, micro_batch=micro)
    actor = Actor("a", host.backbone.name, lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())
    train(replace(actor, ahead=ahead), (phase,))
    return host.read(sorted(host.params))


@pytest.mark.parametrize("micro", [0, 3])
def test_reading_ahead_changes_no_number(micro: int) -> None:
    here: list[Any] = []
    there: list[Any] = []
    plain, found = trained(False, micro, here), trained(True, micro, there)
    assert all(torch.equal(plain[key], found[key]) for key in plain)
    assert {main for what, _, main in here if what == "read"} == {True}
    pieces = 2 if micro else 1  # four rows, three at a time
    reads = [main for what, _, main in there if what == "read"]
    assert sum(reads) == pieces  # the first batch has nothing to hide behind
    assert len(reads) == pieces * STEPS
    assert all(main for what, _, main in there if what == "made")


def test_one_batch_waits_and_no_more() -> None:
    events: list[Any] = []
    trained(True, 0, events)
    made = {index: place for place, (what, index, _) in enumerate(events) if what == "made"}
    steps = {index: place for place, (what, index, _) in enumerate(events) if what == "step"}
    assert sorted(made) == list(range(STEPS))
    for index in range(1, STEPS):
        assert steps.get(index - 2, -1) < made[index] < steps[index - 1]


def test_what_is_wrong_with_a_batch_is_said_when_its_turn_comes() -> None:
    events: list[Any] = []
    with pytest.raises(OSError, match="a picture is broken"):
        trained(True, 0, events, broken=2)  # the third batch
    assert [index for what, index, _ in events if what == "step"] == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches-ahead")]


def test_where_it_is_worth_it() -> None:
    assert worth_it(torch.device("cuda"))
    assert not worth_it(torch.device("cpu"))
    assert not worth_it(torch.device("meta"))
