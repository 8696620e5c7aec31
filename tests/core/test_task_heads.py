"""Task heads under the three policies: who trains them, what travels, and whose head answers whose task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heads_support import (
    DECODER,
    ENCODER,
    HEAD_BYTES,
    OPTIONS,
    SIZES,
    WORDS,
    benchmark,
    config,
    encoder,
    same,
    states,
)
from pfl_platform.adapters.heads import HEADS, first_head
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.backbones import Backbone
from pfl_platform.config import RunConfig
from pfl_platform.data import FixedBenchmark, Sample, TaskData, Turn
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.federation import session
from pfl_platform.federation.components import Updates
from pfl_platform.federation.setup import build
from pfl_platform.federation.tasks import Outcome, Task
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder


def run(out: Path, settings: RunConfig, data: FixedBenchmark | None = None) -> RunFolder:
    session.run(settings, out, quiet=True, benchmark=data or benchmark())
    return RunFolder.open(out)


def results(folder: RunFolder) -> dict[str, Any]:
    found = folder.read_results()
    assert found is not None
    return found


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Task, Outcome]]:
    """Every task of a run with its outcome; the tensors of all rounds are kept."""
    seen: list[tuple[Task, Outcome]] = []
    execute = Worker.execute

    def watching(self: Worker, task: Task, observe: Any = None) -> Outcome:
        outcome = execute(self, task, observe)
        seen.append((task, outcome))
        return outcome

    monkeypatch.setattr(Worker, "execute", watching)
    monkeypatch.setattr(RunFolder, "collect_garbage", lambda self, *args, **kwargs: None)
    return seen


Seen = list[tuple[Task, Outcome]]


def rounds(tasks: Seen, index: int) -> dict[str, tuple[Task, Outcome]]:
    return {
        task.actor: (task, outcome) for task, outcome in tasks if (task.stage, task.round_index) == ("round", index)
    }


def test_private_heads_are_trained_and_never_travel(tmp_path: Path, tasks: Seen) -> None:
    folder = run(tmp_path / "run", config())
    heads = {client: HEADS.of(state) for client, state in states(folder).items()}
    first = first_head(encoder(), 0)
    for head in heads.values():
        assert head.keys() == first.keys()
        assert all(not torch.equal(head[key], first[key]) for key in first)
    assert not same(heads["a"], heads["b"])
    for task, outcome in tasks:
        for address in (task.inbox, outcome.sent):
            assert address is None or not HEADS.of(folder.store.get(address))
    begun, _ = rounds(tasks, 0)["a"]
    assert begun.state is not None
    assert same(HEADS.of(folder.store.get(begun.state)), first)


@pytest.mark.parametrize(
    ("method", "changes", "keeps"),
    [
        ("fedit", {"heads": "private"}, True),
        ("fedit", {"heads": "shared"}, False),
        ("guided", {"heads": "private"}, True),
        ("osrm", {"heads": "private", "objective.start": "global"}, True),
    ],
)
def test_moments_survive_of_what_no_download_replaces(
    method: str, changes: dict[str, str], keeps: bool, tmp_path: Path
) -> None:
    """The adapter comes down in every round, and a shared head does; a private head goes on."""
    state = states(run(tmp_path / "run", config(method, **changes)))["a"]
    moments = {key for key in state if key.startswith("moments/") and not key.endswith("count")}
    assert bool(moments) == keeps
    assert all("head/" in key for key in moments)


def test_another_clients_task_is_answered_with_that_ones_head(tmp_path: Path) -> None:
    """What a person would do: a's adapter, b's classifier as it is after the last round, b's test items."""
    folder = run(tmp_path / "run", config("sft"))
    setup = build(config("sft"), PluginManager(), benchmark())
    state = states(folder)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    answers = {(line["client"], line["cell"], line["id"]): line["text"] for line in lines}
    host = setup.worker(folder.store).host(ENCODER)
    data = {client.client_id: client.tasks[0] for client in benchmark().clients}
    for client in SIZES:
        for owner in SIZES:
            host.load({**state[client], **HEADS.of(state[owner])})
            texts = greedy(host, data[owner].test, [{"local": 1.0}], 3)
            cell = f"{owner}:{data[owner].name}"
            assert texts == [answers[client, cell, sample.id] for sample in data[owner].test]
            assert set(texts) <= set(OPTIONS[owner])


def test_borrowed_heads_are_booked_apart(tmp_path: Path) -> None:
    """Two evaluations (each round), three clients, two heads of others each."""
    found = results(run(tmp_path / "run", config("sft", **{"evaluation.every": 1})))
    assert found["cost"]["head_payload"] == 2 * 3 * 2 * HEAD_BYTES
    assert found["cost"]["head_wire"] > found["cost"]["head_payload"]
    assert (found["cost"]["up_payload"], found["cost"]["down_payload"]) == (0, 0)
    assert found["cost"]["steps"] == 2 * 3 * 2
    alone = results(run(tmp_path / "alone", config("sft", **{"evaluation.others": "false"})))
    assert alone["cost"]["head_payload"] == 0
    assert {client: found["clients"][client]["self"]["last"] for client in SIZES} == {
        client: alone["clients"][client]["self"]["last"] for client in SIZES
    }


def test_cells_without_a_fitting_head_are_not_measured(tmp_path: Path) -> None:
    data = benchmark({"c": DECODER})
    found = results(run(tmp_path / "run", config("sft"), data))
    measured = {client: set(entry["tasks"]) for client, entry in found["clients"].items()}
    assert measured == {
        "a": {"a:task-a", "b:task-b"},
        "b": {"a:task-a", "b:task-b"},
        "c": {"a:task-a", "b:task-b", "c:task-c"},  # answers in words, and needs nobody's head
    }
    assert all(entry["others"]["baseline"] is not None for entry in found["clients"].values())
    assert [key for key in states(RunFolder.open(tmp_path / "run"))["c"] if key in HEADS] == []


def test_open_questions_of_others_are_none_of_an_encoders_business(tmp_path: Path) -> None:
    data = benchmark({"c": DECODER})
    *encoders, last = data.clients
    open_ended = [Sample(f"o{k}", (Turn(f"Say {word}.", word),)) for k, word in enumerate(WORDS)]
    task = TaskData("open", "open-ended", "exact", open_ended[:6], [], open_ended[6:])
    mixed = replace(data, clients=(*encoders, replace(last, tasks=(task,))))
    build(config("sft"), PluginManager(), mixed)
    with pytest.raises(UserError, match=r"Client 'c', task 'open', test data: Sample 'o\d' has no options"):
        build(config("sft", heads="frozen"), PluginManager(), mixed)


@pytest.mark.parametrize("backbone", [ENCODER, "tiny-t5"])
def test_methods_that_need_decoders_say_so(backbone: str) -> None:
    data = benchmark({"a": DECODER, "b": backbone, "c": DECODER})
    with pytest.raises(UserError, match=rf"FedMosaic needs backbones .* but '{backbone}' of client 'b' chooses its"):
        build(config("fedmosaic", **{"adapter.blocks": 2}), PluginManager(), data)


def test_shared_heads_are_the_weighted_mean(tmp_path: Path, tasks: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfl_plugins.fedit.components import FedAvg

    absorb = FedAvg.absorb
    given: set[str] = set()

    def watching(self: FedAvg, fed: Any, state: Any, updates: Updates, round_index: int) -> Any:
        given.update(key for update in updates for key in update.tensors())
        return absorb(self, fed, state, updates, round_index)

    monkeypatch.setattr(FedAvg, "absorb", watching)
    folder = run(tmp_path / "run", config(heads="shared"))
    sent = {name: outcome.sent for name, (_, outcome) in rounds(tasks, 0).items()}
    heads = {name: HEADS.of(folder.store.get(address)) for name, address in sent.items() if address}
    assert not same(heads["a"], heads["b"])
    for task, _ in rounds(tasks, 1).values():
        assert task.inbox is not None
        inbox = HEADS.of(folder.store.get(task.inbox))
        assert inbox.keys() == heads["a"].keys()
        for key, value in inbox.items():
            mean = sum(SIZES[name] / 21 * head[key].double() for name, head in heads.items())
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-9)
    assert given
    assert not any(key in HEADS for key in given)
    found = results(folder)
    assert found["cost"]["head_payload"] == 0
    private = results(run(tmp_path / "private", config()))
    assert found["cost"]["up_payload"] - private["cost"]["up_payload"] == 2 * 3 * HEAD_BYTES
    assert found["cost"]["down_payload"] - private["cost"]["down_payload"] == 3 * HEAD_BYTES


def test_shared_heads_travel_where_nothing_else_does(tmp_path: Path, tasks: Seen) -> None:
    folder = run(tmp_path / "run", config("sft", heads="shared"))
    for task, outcome in (*rounds(tasks, 0).values(), *rounds(tasks, 1).values()):
        assert outcome.sent is not None
        assert all(key in HEADS for key in folder.store.get(outcome.sent))
        assert (task.inbox is not None) == (task.round_index == 1)


def test_frozen_heads_stay_as_they_are(tmp_path: Path, tasks: Seen) -> None:
    folder = run(tmp_path / "run", config("sft", heads="frozen"))
    assert all(key not in HEADS for state in states(folder).values() for key in state)
    assert results(folder)["cost"]["head_payload"] == 0
    assert len(results(folder)["clients"]["a"]["tasks"]) == 3
    assert not [task for task, _ in tasks if task.stage == "score"]  # nothing to wait for


def test_new_heads_come_from_the_runs_seed() -> None:
    backbone = encoder()
    fresh = replace(backbone, fresh_head=("classifier",))
    loaded, first, again, other = (
        first_head(made, seed) for made, seed in ((backbone, 0), (fresh, 0), (fresh, 0), (fresh, 1))
    )
    weight, bias = "head/classifier/out_proj.weight", "head/classifier/out_proj.bias"
    assert torch.equal(loaded[weight], backbone.module("classifier").out_proj.weight)  # type: ignore[union-attr,arg-type]
    assert same(first, again)
    assert not torch.equal(first[weight], other[weight])
    assert float(first["head/classifier/dense.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(first[bias].abs().sum()) == 0.0
    assert same(first_head(backbone, 1), loaded)


def test_another_clients_head_does_not_stay_behind(tmp_path: Path) -> None:
    """A worker that has served somebody else gives the bare backbone its own head again."""
    setup = build(config("sft"), PluginManager(), benchmark())
    folder = RunFolder.create(tmp_path / "run", config("sft"), {})
    worker = setup.worker(folder.store)
    host = worker.host(ENCODER)
    first = host.read(sorted(key for key in host.params if key in HEADS))
    host.load({key: torch.ones_like(value) for key, value in first.items()})
    worker.execute(Task("bare", "baseline", 0, ENCODER))
    assert same(host.read(list(first)), first)


def test_a_pattern_of_the_head_has_a_rate_of_its_own(tmp_path: Path, tasks: Seen) -> None:
    folder = run(tmp_path / "run", config("sft", **{"training.lr_scale": "{'head/*': 0.0}"}))
    assert same(HEADS.of(states(folder)["a"]), first_head(encoder(), 0))
    with pytest.raises(UserError, match=r"'head/\*' of training\.lr_scale matches no key that trains"):
        build(config("sft", heads="frozen", **{"training.lr_scale": "{'head/*': 0.0}"}), PluginManager(), benchmark())


class Killed(BaseException):
    """Stands for a process that dies."""


@pytest.mark.parametrize("victim", [1, 4])
def test_a_run_killed_while_scoring_goes_on(victim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("sft", **{"evaluation.every": 1})
    whole = run(tmp_path / "whole", settings)
    execute: Callable[..., Outcome] = Worker.execute
    count = 0

    def mortal(self: Worker, task: Task, observe: Any = None) -> Outcome:
        nonlocal count
        count += task.stage == "score"
        if task.stage == "score" and count == victim:
            raise Killed
        return execute(self, task, observe)

    monkeypatch.setattr(Worker, "execute", mortal)
    with pytest.raises(Killed):
        run(tmp_path / "killed", settings)
    monkeypatch.setattr(Worker, "execute", execute)
    session.resume(tmp_path / "killed", quiet=True, benchmark=benchmark())
    left, right = (states(RunFolder.open(tmp_path / name)) for name in ("whole", "killed"))
    assert all(same(left[client], right[client]) for client in SIZES)
    for name in ("predictions.jsonl",):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (
        results(whole)["clients"]["a"]["tasks"] == results(RunFolder.open(tmp_path / "killed"))["clients"]["a"]["tasks"]
    )


def logits_of(backbone: Backbone, batch: Sequence[Sample]) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone.model(**backbone.codec.encode(batch).inputs).logits
    return found


@pytest.mark.parametrize("heads", ["private", "frozen"])
def test_plain_peft_loads_adapter_and_head(heads: str, tmp_path: Path) -> None:
    from peft import PeftModel

    settings = config("sft", heads=heads)
    folder = run(tmp_path / "run", settings)
    setup = build(settings, PluginManager(), benchmark())
    host = setup.worker(folder.store).host(ENCODER)
    host.load(states(folder)["b"])
    batch = benchmark().clients[1].tasks[0].test
    with host.mixing({"local": 1.0}):
        expected = logits_of(host.backbone, batch)
    plain = encoder()
    bare = logits_of(plain, batch)
    model = PeftModel.from_pretrained(plain.model, str(folder.adapter_folder("b"))).eval()
    with torch.no_grad():
        found = model(**plain.codec.encode(batch).inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare, expected, atol=1e-2)


def test_a_whole_backbone_is_trained_with_its_head() -> None:
    host = Host(encoder(), whole=True)
    assert not [key for key in host.params if key in HEADS]
    chosen = host.select(Keys("backbone/*"))
    assert "backbone/classifier.out_proj/weight" in chosen
    assert all(tensor.requires_grad for tensor in chosen.values())


def test_a_head_without_weights_is_a_shape() -> None:
    """Plans load a head into every host; that of a backbone that is planned has no values."""
    backbone = PluginManager().make("backbone", "tiny-roberta", {"device": "meta"})
    heads = [tensor for params in backbone.loaded_head.values() for tensor in params.values()]
    assert heads
    assert all(tensor.is_meta and tensor.dtype == torch.float32 for tensor in heads)
