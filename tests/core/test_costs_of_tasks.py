"""What a task is said to cost: every pass that it made, on every backbone, and what an earlier run computed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Control, Tensors
from pfl_platform.backbones import IGNORE, Answers
from pfl_platform.data import Sample, Turn
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.federation.observers import Observer
from pfl_platform.federation.rounds import client_task, context, drive, prepare
from pfl_platform.federation.setup import Setup, build
from pfl_platform.federation.tasks import Cost, Outcome, Task
from pfl_platform.ledger.bytes import payload_bytes, wire_bytes
from pfl_platform.ledger.flops import forward_flops, training_flops
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import samples
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Statistic, View
from pfl_plugins.fedmosaic.config import Alignment

SMALL, LARGE = "tiny-llama-s", "tiny-llama-m"
INPUTS = {"input_ids": torch.zeros(2, 5), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
"""Seven tokens and three of padding."""


class Toy(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids


def toy_host() -> Any:
    """A backbone of 100 params with two slots (10 and 20), what they share (3), and a learned mix (2)."""
    sizes = {"local/a/A": 10, "global/a/A": 20, "frozen/a/B": 3, "gate/a/beta": 2}
    params = {key: torch.zeros(size, requires_grad=key.startswith("local")) for key, size in sizes.items()}
    backbone = SimpleNamespace(model=Toy(), name="toy")
    sizes = {"linear_values": 100, "head_values": 30}
    return SimpleNamespace(backbone=backbone, params=params, control=Control(), **sizes)


def booked(host: Any, meter: FlopMeter, mix: Any) -> int:
    before, host.control.mix = meter.formula, mix
    host.backbone.model(**INPUTS)
    return meter.formula - before


def test_a_pass_costs_what_its_mix_and_its_gradient_say() -> None:
    host, meter = toy_host(), FlopMeter()
    with meter.watching(host, ("local", "global")):
        assert booked(host, meter, {}) == 2 * 100 * 7
        # 100 of the backbone and the 3 that are shared, there and back; 10 that train, three times.
        assert booked(host, meter, {"local": 1.0}) == 4 * 103 * 7 + 6 * 10 * 7
        assert booked(host, meter, {"global": 1.0}) == 2 * 123 * 7  # nothing trains: no way back
        assert booked(host, meter, "gate") == 4 * (100 + 20 + 3 + 2) * 7 + 6 * 10 * 7
        host.params["gate/a/beta"].requires_grad_(True)
        assert booked(host, meter, "gate") == 4 * (100 + 20 + 3) * 7 + 6 * 12 * 7
        with torch.no_grad():
            assert booked(host, meter, "gate") == 2 * (100 + 10 + 20 + 3 + 2) * 7
        # Three of the seven tokens are answered by the head, whose params are 30 of the 100.
        host.control.answers = Answers.of(torch.tensor([[IGNORE, IGNORE, 1, 1, 1], [IGNORE] * 5]))
        assert booked(host, meter, {}) == 2 * (70 * 7 + 30 * 3)
        host.params["gate/a/beta"].requires_grad_(False)
        assert booked(host, meter, {"local": 1.0}) == 4 * (73 * 7 + 30 * 3) + 6 * 10 * 7
        assert meter.passes == {"toy": 8}
    booked(host, meter, {"local": 1.0})
    assert meter.passes == {"toy": 8}  # nobody watches any more


def test_dry_rows_are_not_booked() -> None:
    host, meter = toy_host(), FlopMeter()
    with meter.watching(host):
        meter.measure(("step",), lambda: 7, lambda: host.backbone.model(**INPUTS))
    assert (meter.formula, meter.passes) == (0, {})


class Costs(Observer):
    def __init__(self) -> None:
        self.found: dict[str, Cost] = {}

    def task_done(self, task: Task, outcome: Outcome, cached: bool) -> None:
        self.found[task.actor] = outcome.cost


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Setup, MemoryStore]]:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))

    def make(method: str, **changes: Any) -> tuple[Setup, MemoryStore]:
        bench = Bench(method, tmp_path, (SMALL, LARGE), ["backbone_options.init=0"])
        return build(bench.config(**changes), bench.manager, bench.benchmark()), MemoryStore()

    return make


def passed(host: Host, batch: list[Sample], ways: int = 1) -> int:
    """FLOPs of a backbone's passes over a batch: every token through the blocks, every answer token through the head.
    `ways` is 2 for a pass there and back."""
    encoded = host.backbone.codec.encode(batch)
    answered = sum(int((labels[1:] != IGNORE).sum()) for labels in encoded.labels)
    blocks = host.linear_values - host.head_values
    return ways * (forward_flops(blocks, encoded.tokens) + forward_flops(host.head_values, answered))


def test_alignment_and_the_sketch_of_another_backbone_are_booked(
    made: Callable[..., tuple[Setup, MemoryStore]],
) -> None:
    """Client c trains the larger backbone for 3 steps, and looks at step 0 with the smaller one."""
    setup, store = made("fedmosaic", **{"evaluation.every": 100})
    fed, worker, costs = setup.federation(store), setup.worker(store), Costs()
    engine = InProcessEngine(worker, [costs])
    progress = drive(prepare(fed, setup.parts), engine)
    small, large = worker.host(SMALL), worker.host(LARGE)

    public = list(fed.public())
    options = Alignment(**fed.config.objective.options.get("alignment", {}))
    passes = options.epochs + 1  # one for B
    (aligned,) = costs.found.values()
    assert aligned.flops_formula == passes * (passed(small, public) + passed(large, public))
    assert 0.8 < aligned.flops / aligned.flops_formula < 1.4

    client = fed.clients[2]
    task = client_task(fed, setup.parts, progress, client, 0)
    (step,) = task.phases[0].steps
    opened = context(fed, client, 0).source.open({})
    batches = [list(opened.batch(index)) for index in range(3)]
    sizes = {key: value.numel() for key, value in large.params.items()}
    trained = sum(size for key, size in sizes.items() if key in step.train)
    idle = sum(sizes.values()) - trained
    expected = passed(small, batches[0]) + sum(
        passed(large, batch, ways=2)
        + training_flops(0, trained, large.backbone.codec.encode(batch).tokens, idle_adapter=idle)
        for batch in batches
    )
    cost = worker.execute(task).cost
    assert cost.flops_formula == expected
    assert 0.8 < cost.flops / cost.flops_formula < 1.4


class Peek(Statistic):
    """Looks at a batch of its own with some backbones, twice with each."""

    name, amount = "peek", 1

    def __init__(self, backbones: tuple[str, ...]) -> None:
        self.data = Epochs(samples("peek", 2), 2, 0, "peek")
        self.backbones = backbones

    def add(self, acc: Any, view: View) -> Any:
        for name in self.backbones * 2:
            view.forward({}, backbone=name)
        return acc

    def finish(self, acc: Any, private: Tensors, rng: Any) -> tuple[Tensors, Tensors]:
        return {}, {}


def test_a_pass_of_its_own_is_booked_and_others_must_be_declared(
    made: Callable[..., tuple[Setup, MemoryStore]],
) -> None:
    setup, store = made("sft")
    worker = setup.worker(store)
    task = Task("a", "round", 0, SMALL, statistics=(Peek((SMALL, LARGE)),), others=(LARGE,))
    batch = samples("peek", 2)
    assert worker.execute(task).cost.flops_formula == sum(
        2 * passed(worker.host(name), batch) for name in (SMALL, LARGE)
    )
    with pytest.raises(UserError, match=f"of a runs the backbone '{LARGE}', which its task does not declare"):
        worker.execute(Task("a", "round", 0, SMALL, statistics=(Peek((SMALL, LARGE)),)))


def test_messages_are_booked_by_formula_and_by_length(made: Callable[..., tuple[Setup, MemoryStore]]) -> None:
    setup, store = made("fedit", **{"evaluation.every": 100})
    fed, worker = setup.federation(store), setup.worker(store)
    engine = InProcessEngine(worker)
    progress = drive(prepare(fed, setup.parts), engine)
    outcome = worker.execute(client_task(fed, setup.parts, progress, fed.clients[0], 0))
    assert outcome.sent is not None
    message = store.get(outcome.sent)
    assert (outcome.cost.up_payload, outcome.cost.up_wire) == (payload_bytes(message), wire_bytes(message))
    assert outcome.cost.up_wire > outcome.cost.up_payload > 0


def test_what_another_run_computed_is_booked_as_it_was() -> None:
    """Nothing is loaded or computed: the backbone does not even exist."""
    store = MemoryStore()
    place = SimpleNamespace(store=store, load=lambda name: pytest.fail(f"{name} was loaded"), batch=1)
    worker = Worker(place)  # type: ignore[arg-type]
    address = store.put({"frozen/block1/A": torch.ones(2)})
    cost = Cost(seconds=3.0, steps=5, flops=7.0, flops_formula=6.0)
    task = Task("alignment of b", "prepare", 0, "no backbone", state=address, recorded=cost)
    costs = Costs()
    outcomes = InProcessEngine(worker, [costs]).run([task])
    assert (outcomes[task.actor].state, outcomes[task.actor].cost, costs.found) == (address, cost, {task.actor: cost})
    again = InProcessEngine(worker, [costs]).run([task])  # from the store's cache: the cost comes with it
    assert again == outcomes
    assert task.digest() != Task("alignment of b", "prepare", 0, "no backbone", state=address).digest()


class Everywhere(Peek):
    """Looks at the logits of all positions."""

    def add(self, acc: Any, view: View) -> Any:
        return view.forward({}, whole=True).logits.sum()


def test_passes_with_all_logits_are_booked_as_such(made: Callable[..., tuple[Setup, MemoryStore]]) -> None:
    """The dry row has another share of answers than the batch; the counted figure follows the formula all the same."""
    setup, store = made("sft")
    worker = setup.worker(store)
    peek = Everywhere((SMALL,))
    batch = [
        replace(sample, turns=(Turn("Say it. " * 6 * number, "round"),))
        for number, sample in enumerate(samples("peek", 3))
    ]
    peek.data = Epochs(batch, 3, 0, "peek")
    cost = worker.execute(Task("a", "round", 0, SMALL, statistics=(peek,))).cost
    host = worker.host(SMALL)
    encoded = host.backbone.codec.encode(batch)
    assert cost.flops_formula == forward_flops(host.linear_values, encoded.tokens)
    first = host.backbone.codec.encode(batch[:1])
    assert len(first.answers) / first.tokens > 2 * len(encoded.answers) / encoded.tokens
    assert cost.flops / cost.flops_formula == pytest.approx(1.0, abs=0.1)  # attention beside
