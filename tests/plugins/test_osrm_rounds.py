"""OSRM from the first round on: training, the server, what is refused, and options of training that papers ask for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from osrm_support import SMALL, Run, client, federation, part, set_up
from pfl_platform.errors import UserError
from pfl_platform.federation.rounds import context
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.streams import Epochs


def test_two_rounds_and_what_later_rounds_start_from() -> None:
    own, fresh = (Run(federation(f"objective.start={start}")).go(2) for start in ("own", "global"))
    early = [part(run.store.get(run.outcomes[0]["a"].state or ""), "B") for run in (own, fresh)]
    assert all(torch.equal(early[1][site], value) for site, value in early[0].items())
    for run in (own, fresh):
        assert all(outcome.cost.down_payload > 0 for outcome in run.outcomes[1].values())
        assert run.progress.server.tensors
    # Then one goes on from its own adapter and moments, the other from the reply, which is the same for both clients.
    assert any(key.startswith("moments/") for key in own.state("a"))
    assert not any(key.startswith("moments/") for key in fresh.state("a"))
    a, b = part(own.state("a"), "A"), part(own.state("b"), "A")
    apart = [float((a[site] - b[site]).norm()) for site in a]
    a, b = part(fresh.state("a"), "A"), part(fresh.state("b"), "A")
    together = [float((a[site] - b[site]).norm()) for site in a]
    assert max(together) < min(apart)


def test_a_frozen_A_stays() -> None:
    run = Run(federation("objective.freeze_a=true"))
    before = run.state("a")
    after = run.go().state("a")
    assert all(torch.equal(part(before, "A")[site], value) for site, value in part(after, "A").items())
    assert any(bool(value.any()) for value in part(after, "B").values())


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (("aggregator=fedavg",), "'fedavg' combines params key by key, A with A"),
        (("aggregator=nbs",), "'nbs' combines params key by key"),
        (("aggregator=hetlora",), "'hetlora' combines params key by key"),
        (("aggregator=fisher",), "'fisher' combines params key by key"),
        (("aggregator.space=ab",), "'task-arithmetic' combines params key by key"),
        (("aggregator.relora=true",), "would count it twice; set rounds=1"),
        (("adapter=pqlora",), "Osrm works with the adapters lora"),
        (("objective.samples=0",), "samples"),
    ],
)
def test_what_cannot_work_is_refused(sets: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federation(*sets)


def test_no_validation_samples_are_noticed_before_anything_starts() -> None:
    clients = [client(name) for name in "ab"]
    bare = [replace(one, tasks=(replace(one.tasks[0], validation=[]),)) for one in clients]
    with pytest.raises(UserError, match="Client 'a' has no validation samples for OSRM"):
        set_up(bare, "objective.split=validation")


def test_the_tool_measures_what_the_figures_show(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("osrm_diagnostics", checkout / "tools" / "osrm_diagnostics.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    reports = {}
    for method in ("osrm", "fedit"):
        sets = ("aggregator=task-arithmetic", "rounds=1", "objective.samples=8") if method == "osrm" else ("rounds=1",)
        run = Run(federation(*sets, method=method))
        first = {name: run.state(name) for name in "ab"}
        run.go()
        last = {name: run.state(name) for name in "ab"}
        setup = federation(*sets, method=method)
        rows = tool.features(setup, 8)
        assert all(len(found) == 8 for sites in rows.values() for found in sites.values())
        reports[method] = tool.measure(setup, first, last, rows)[SMALL]
        tool.show(method, {SMALL: reports[method]})
    printed = capsys.readouterr().out
    assert printed.count("change of A by training") == 2
    for found in reports.values():
        assert found["rank"]["samples"] == [1, 2, 5, 8]
        assert found["rank"]["mean"][:2] == [1.0, 2.0]
        assert all(0 < value < 1 for sites in found["change_of_A"].values() for value in sites.values())
    # Before training A hears less of the other client under OSRM than an ordinary A does.
    others = {method: found["reach_before"][0][1] for method, found in reports.items()}
    assert others["osrm"] < 0.7 * others["fedit"]


# Options of training.


def test_epochs_are_shuffled_passes_over_all_samples() -> None:
    setup = federation("local_epochs=3", "rounds=2", "training.batch_size=3", "training.warmup_ratio=0.1", method="sft")
    fed = setup.federation(MemoryStore())
    seen: list[list[str]] = []
    for index in range(2):
        ctx = context(fed, fed.clients[0], index)
        assert ctx.local_steps == 3 * 3  # 8 samples, the last batch of a pass has 2
        assert (ctx.optim.first_step, ctx.optim.total_steps, ctx.first_step) == (9 * index, 18, 9 * index)
        assert ctx.optim.warmup == 2  # a tenth of 18, rounded up
        opened = ctx.source.open({})
        for step in range(ctx.local_steps):
            seen.append([sample.id for sample in opened.batch(step)])
    everything = {sample.id for sample in fed.clients[0].tasks[0].train}
    passes = [[name for batch in seen[k : k + 3] for name in batch] for k in range(0, 18, 3)]
    assert all(len(each) == 8 and set(each) == everything for each in passes)
    assert len({tuple(each) for each in passes}) == 6  # shuffled anew, also across rounds


def test_steps_rule_where_epochs_are_not_asked_for() -> None:
    fed = federation("training.warmup=3", "training.warmup_ratio=0.5", method="sft").federation(MemoryStore())
    ctx = context(fed, fed.clients[0], 1)
    assert (ctx.local_steps, ctx.optim.warmup, ctx.optim.total_steps) == (2, 3, 4)
    assert not isinstance(ctx.source, Epochs)
