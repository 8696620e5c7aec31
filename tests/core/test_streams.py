"""Arrival and memory sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_platform.config import Stream
from pfl_platform.data import ClientData, Sample, TaskData, Turn
from pfl_platform.training.streams import COUNTS, ClientStream, Epochs, begun


def task(name: str, count: int) -> TaskData:
    samples = [Sample(f"{name}{k}", (Turn("q", "a"),)) for k in range(count)]
    return TaskData(name, "open-ended", "exact", samples, [], [])


def stream(**changes: object) -> ClientStream:
    client = ClientData("c", "b", (task("x", 4), task("y", 4)))
    options = {"client": client, "options": Stream(), "seed": 0, "batch_size": 2, "first_step": 0, "total_steps": 16}
    return ClientStream(**{**options, **changes})  # type: ignore[arg-type]


def test_dynamic_arrival_is_even_within_each_tasks_share() -> None:
    # 16 steps, two tasks of 8 steps each, four samples each: one sample every second step.
    items, steps = stream().arrivals()
    assert steps.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [t for t, _ in items] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sorted(i for t, i in items if t == 0) == [0, 1, 2, 3]


def test_static_arrival_mixes_the_tasks() -> None:
    client = ClientData("c", "b", (task("x", 40), task("y", 40)))
    items, steps = stream(client=client, options=Stream(protocol="static"), total_steps=80).arrivals()
    assert steps.tolist() == list(range(80))
    assert {t for t, _ in items[:20]} == {0, 1}


def test_a_task_that_has_not_begun_is_never_drawn() -> None:
    opened = stream().open({})
    for step in range(8):
        assert all(sample.id.startswith("x") for sample in opened.batch(step))


def test_tasks_have_begun_when_something_of_them_arrived() -> None:
    client = ClientData("c", "b", tuple(task(name, 10) for name in "wxyz"))
    names = [[task.name for task in begun(client, "dynamic", step, 10)] for step in (0, 1, 2, 3, 5, 6, 8, 10)]
    first = [task.name for task in client.tasks]
    # Four tasks over ten steps begin with steps 0, 2, 5 and 7.
    assert names == [first[:n] for n in (0, 1, 1, 2, 2, 3, 4, 4)]
    assert begun(client, "static", 1, 10) == client.tasks
    assert begun(client, "static", 0, 10) == ()


def test_batches_depend_on_the_total_step_and_not_on_rounds() -> None:
    whole = stream().open({})
    straight = [[sample.id for sample in whole.batch(step)] for step in range(16)]
    pieces = []
    for first in (0, 4, 8, 12):
        opened = stream(first_step=first).open({})
        pieces += [[sample.id for sample in opened.batch(step)] for step in range(4)]
    assert straight == pieces


def test_least_used_goes_on_from_its_counts() -> None:
    options = Stream(sampler="least_used")
    whole = stream(options=options).open({})
    straight = [[sample.id for sample in whole.batch(step)] for step in range(16)]
    private: dict[str, torch.Tensor] = {}
    pieces = []
    for first in (0, 8):
        opened = stream(options=options, first_step=first).open(private)
        pieces += [[sample.id for sample in opened.batch(step)] for step in range(8)]
        private = opened.private()
    assert straight == pieces
    assert torch.equal(private[COUNTS], whole.private()[COUNTS])


def test_least_used_counts_by_hand() -> None:
    # Two samples, batch of one. Counts start at 0; each draw multiplies by 0.5 and adds 1 to what was drawn.
    client = ClientData("c", "b", (task("x", 2),))
    options = Stream(sampler="least_used", decay=0.5, protocol="static", temperature=0.01)
    opened = stream(client=client, options=options, batch_size=1, total_steps=2).open({})
    (first,) = opened.batch(1)  # both have arrived
    (second,) = opened.batch(1)
    assert first.id != second.id  # exp(-1 / 0.01) against 1
    assert sorted(opened.private()[COUNTS].tolist()) == [0.5, 1.0]


def test_least_used_evens_out_use() -> None:
    """After 200 draws of 2 from 20 samples each was used 20 times, give or take; uniform draws spread by sqrt(18)."""

    def spread(sampler: str) -> float:
        client = ClientData("c", "b", (task("x", 20),))
        options = Stream(sampler=sampler, protocol="static", decay=1.0)  # type: ignore[arg-type]
        opened = stream(client=client, options=options, first_step=20, total_steps=20).open({})
        uses = dict.fromkeys((f"x{k}" for k in range(20)), 0)
        for step in range(200):
            for sample in opened.batch(step):
                uses[sample.id] += 1
        return float(np.std(list(uses.values())))

    assert spread("least_used") < 1.0
    assert spread("uniform") > 2.0


def test_a_full_memory_evicts() -> None:
    client = ClientData("c", "b", (task("x", 50),))
    opened = stream(client=client, options=Stream(capacity=5, protocol="static"), total_steps=50).open({})
    seen = {sample.id for _ in range(1) for sample in opened.batch(49)}
    assert len(opened._memory) == 5
    assert len(set(opened._memory)) == 5
    assert seen


def test_drawing_is_without_replacement() -> None:
    opened = stream(batch_size=8, options=Stream(protocol="static")).open({})
    batch = [sample.id for sample in opened.batch(15)]
    assert len(set(batch)) == 8


def test_epochs_visit_everything_once_per_pass() -> None:
    source = Epochs(task("x", 5).train, 2, 0, "test")
    assert source.steps(2) == 6
    opened = source.open({})
    first = [sample.id for step in range(3) for sample in opened.batch(step)]
    second = [sample.id for step in range(3, 6) for sample in opened.batch(step)]
    assert sorted(first) == sorted(second) == [f"x{k}" for k in range(5)]
    assert first != second


@pytest.mark.parametrize("rounds", [5, 8, 16])
def test_any_number_of_rounds_sees_the_same_stream(rounds: int) -> None:
    per_round = 16 // rounds
    ids = []
    for round_index in range(rounds):
        opened = stream(first_step=round_index * per_round).open({})
        ids += [sample.id for step in range(per_round) for sample in opened.batch(step)]
    whole = stream().open({})
    assert ids == [sample.id for step in range(rounds * per_round) for sample in whole.batch(step)]
