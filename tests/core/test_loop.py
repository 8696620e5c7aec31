"""The one training loop and generation, on a tiny random text model."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.config import Stream as StreamOptions
from pfl_platform.data import ClientData, Sample, TaskData, Turn
from pfl_platform.errors import RunStopped
from pfl_platform.evaluation.generate import greedy
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, Trained, train
from pfl_platform.training.losses import answer_loss, answers_under
from pfl_platform.training.streams import COUNTS, ClientStream, Epochs
from pfl_platform.training.surfaces import Optim, Phase, Statistic, Step, View

SAMPLES = [Sample(str(k), (Turn(f"Say {word}.", word),)) for k, word in enumerate(("red", "blue", "big", "left") * 2)]
LOCAL = Keys("local/*/A", "local/*/B")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def host() -> Host:
    manager = PluginManager()
    adapter = manager.make("adapter", "lora", {"r": 2})
    return Host(manager.make("backbone", "tiny-llama-s", {"init": 0}), adapter, (Slot("local"), Slot("second")))


def fresh(host: Host) -> Actor:
    adapter = PluginManager().make("adapter", "lora", {"r": 2})
    host.load({**adapter.initial(host.backbone, "local", 0), **adapter.initial(host.backbone, "second", 1)})
    return Actor("alice", "tiny", lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())


def phase(steps: Sequence[Step], amount: int = 3, **changes: Any) -> Phase:
    return Phase("p", tuple(steps), amount, Epochs(SAMPLES, 4, 0, "test"), **changes)


def plain(mix: Mapping[str, float] | None = None, train_keys: Keys = LOCAL) -> Step:
    return Step(train_keys, answers_under(mix or {"local": 1.0}), Optim(0.01))


def test_training_lowers_the_loss_and_touches_only_what_trains(host: Host) -> None:
    actor = fresh(host)
    before = host.read(sorted(host.params))
    done = train(actor, (phase([plain()], 20),))
    losses = done.losses["p"]
    assert len(losses) == done.steps == 20
    assert losses[-1] < losses[0] - 0.5
    after = host.read(sorted(host.params))
    changed = {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"local"}


def test_the_loss_is_the_mean_over_supervised_tokens(host: Host) -> None:
    actor = fresh(host)
    seen: list[tuple[float, float]] = []

    def both(view: View) -> Tensor:
        output = view.forward({}, whole=True)
        rows = answer_loss(output)
        labels = output.encoded.labels
        reference = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        seen.append((float(rows.mean()), float(reference)))
        return answer_loss(view.forward({"local": 1.0}))

    train(actor, (phase([Step(LOCAL, both, Optim(0.01))], 1),))
    ((ours, reference),) = seen
    assert ours == pytest.approx(reference, rel=1e-6)


def test_micro_batches_accumulate_to_the_whole_batch(host: Host) -> None:
    same_length = [Sample(str(k), (Turn("Say it.", "red"),)) for k in range(4)]
    results = []
    for micro in (0, 2):
        actor = fresh(host)
        source = Epochs(same_length, 4, 0, "x")
        done = train(actor, (Phase("p", (plain(),), 2, source, micro_batch=micro),))
        results.append((done.losses["p"], host.read([key for key in host.params if key in LOCAL])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for key, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][key], rtol=1e-2, atol=1e-3)


def test_every_step_of_a_phase_sees_the_same_batch(host: Host) -> None:
    seen: list[tuple[str, list[str]]] = []

    def spy(name: str, slot: str) -> Step:
        def loss(view: View) -> Tensor:
            seen.append((name, [sample.id for sample in view.samples]))
            return answer_loss(view.forward({slot: 1.0}))

        return Step(Keys(f"{slot}/*/A", f"{slot}/*/B"), loss, Optim(0.01), name=name)

    train(fresh(host), (phase([spy("one", "local"), spy("two", "second")], 2),))
    assert [name for name, _ in seen] == ["one", "two", "one", "two"]
    assert seen[0][1] == seen[1][1] != seen[2][1] == seen[3][1]


def test_a_penalty_is_added_once_and_reads_the_inbox(host: Host) -> None:
    actor = fresh(host)
    anchors = host.read([key for key in host.params if key in LOCAL])
    actor = Actor(actor.name, actor.backbone, actor.hosts, actor.rng, actor.driver, refs=anchors)

    def pull(params: Mapping[str, Tensor], refs: Tensors) -> Tensor:
        return 1000 * torch.stack([(params[key] - value).square().sum() for key, value in refs.items()]).sum()

    train(fresh(host), (phase([plain()], 4),))
    free = host.read(list(anchors))
    fresh(host)
    train(actor, (phase([Step(LOCAL, answers_under({"local": 1.0}), Optim(0.01), pull)], 4),))
    held = host.read(list(anchors))
    drift = {
        name: sum(float((t[k] - anchors[k]).norm()) for k in anchors) for name, t in (("free", free), ("held", held))
    }
    assert drift["held"] < drift["free"]


class Watch(Statistic):
    name = "watch"

    def __init__(self, every: int | None, amount: int = 0) -> None:
        self.every = every
        self.amount = amount
        self.data = Epochs(SAMPLES, 4, 0, "own") if every is None else None

    def add(self, acc: Any, view: View) -> Any:
        assert not torch.is_grad_enabled()
        return [*(acc or []), view.step]

    def finish(self, acc: Any, private: Tensors, rng: Any) -> tuple[Tensors, Tensors]:
        return {"watch/steps": torch.tensor(acc)}, {
            "watch/count": torch.tensor(len(acc)) + private.get("watch/count", 0)
        }


def test_statistics_look_at_every_mth_batch_or_make_a_pass(host: Host) -> None:
    done = train(fresh(host), (phase([plain()], 5),), (Watch(2),), {"watch/count": torch.tensor(10)})
    assert done.sent["watch/steps"].tolist() == [0, 2, 4]
    assert done.private["watch/count"].item() == 13
    done = train(fresh(host), (), (Watch(None, 2),))
    assert done.sent["watch/steps"].tolist() == [0, 1]


def test_a_loss_that_is_not_finite_stops_with_the_clients_name(host: Host) -> None:
    def broken(view: View) -> Tensor:
        loss = answer_loss(view.forward({"local": 1.0}))
        return loss * float("nan") if view.step == 2 else loss

    with pytest.raises(RunStopped, match=r"alice is nan in phase 'p' at local step 2"):
        train(fresh(host), (phase([Step(LOCAL, broken, Optim(0.01))], 5),))


def test_a_step_that_stumbles_over_a_broken_loss_is_not_what_is_said(host: Host) -> None:
    def broken(view: View) -> Tensor:
        if view.step == 3:
            raise ValueError("these params are no numbers")
        loss = answer_loss(view.forward({"local": 1.0}))
        return loss * float("nan") if view.step == 2 else loss

    with pytest.raises(RunStopped, match=r"alice is nan in phase 'p' at local step 2"):
        train(fresh(host), (phase([Step(LOCAL, broken, Optim(0.01))], 5),))


@pytest.mark.parametrize("by_length", [False, True])
def test_a_batch_goes_into_micro_batches_by_length(host: Host, by_length: bool) -> None:
    words = ("red", "blue", "a very long answer indeed", "big", "left", "another answer that is long")
    asked = [Sample(str(k), (Turn("Say it.", word),)) for k, word in enumerate(words)]
    seen: list[list[str]] = []
    padded = 0

    def noted(view: View) -> Tensor:
        nonlocal padded
        output = view.forward({"local": 1.0})
        mask = output.encoded.inputs["attention_mask"]
        padded += mask.numel() - int(mask.sum())
        seen.append([sample.id for sample in view.samples])
        return answer_loss(output)

    data = Epochs(asked, 6, 0, "test", shuffle=False)
    train(fresh(host), (Phase("p", (Step(LOCAL, noted, Optim(0.01)),), 1, data, 2, by_length=by_length),))
    if by_length:
        assert seen == [["5", "2"], ["1", "4"], ["0", "3"]]  # of equal length: as they came
        assert padded <= 4
    else:
        assert seen == [["0", "1"], ["2", "3"], ["4", "5"]]
        assert padded > 4


class Looks(TorchDispatchMode):
    """Notes when we ask for the value of a tensor, which waits for whatever a device has been given to do. Models of
    transformers ask once in every pass, whether a mask masks anything."""

    def __init__(self, events: list[object]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            files = [frame.filename for frame in traceback.extract_stack()]
            if not any(file.endswith("masking_utils.py") for file in files):
                self.events.append("look")
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_but_the_loss_of_the_step_before(host: Host) -> None:
    events: list[object] = []

    def noted(view: View) -> Tensor:
        events.append(view.step)
        return answer_loss(view.forward({"local": 1.0}))

    actor, meter = fresh(host), FlopMeter()
    actor = Actor(actor.name, actor.backbone, actor.hosts, actor.rng, actor.driver, flops=meter)
    training = phase([Step(LOCAL, noted, Optim(0.01, clip=1.0))], 4)
    train(actor, (training,))  # what is counted once is counted
    events.clear()
    with meter.watching(host), Looks(events):
        found = train(actor, (training,))
    assert events == [0, 1, "look", 2, "look", 3, "look", "look"]
    assert meter.tokens
    assert len(found.losses["p"]) == 4


def test_params_that_are_not_finite_stop_the_client(host: Host) -> None:
    """sqrt has a finite value and an infinite slope at 0, so the loss alone does not show it."""

    def treacherous(view: View) -> Tensor:
        a, b = (view.params[f"local/layer0.self_attn.q_proj/{part}"] for part in "AB")
        return (b * a.sum() * 0).sum().sqrt() + answer_loss(view.forward({"local": 1.0}))

    with pytest.raises(RunStopped, match=r"of alice is not finite after phase 'p'"):
        train(fresh(host), (phase([Step(LOCAL, treacherous, Optim(0.01))], 1),))


def test_after_a_phase_its_params_can_be_replaced(host: Host) -> None:
    def zeros(params: dict[str, Tensor], _refs: Tensors) -> dict[str, Tensor]:
        return {key: torch.zeros_like(value) for key, value in params.items()}

    train(fresh(host), (phase([plain()], 1, after=zeros),))
    assert all(not value.any() for key, value in host.read(list(host.params)).items() if key in LOCAL)


def test_counting_flops_changes_nothing(host: Host) -> None:
    def run(meter: FlopMeter | None) -> Trained:
        actor = fresh(host)
        actor = Actor(actor.name, actor.backbone, actor.hosts, actor.rng, actor.driver, flops=meter)
        return train(actor, (phase([plain()], 3),))

    meter = FlopMeter()
    assert run(meter).losses == run(None).losses
    # Forward and backward through frozen linear maps cost 2 N per token each, N their params; adapters cost more.
    linear = sum(m.weight.numel() for m in host.backbone.model.modules() if isinstance(m, torch.nn.Linear))
    tokens = sum(host.backbone.codec.encode(SAMPLES[k : k + 4]).tokens for k in (0, 4))
    assert meter.total > 2 * linear * tokens


def test_greedy_generation_is_what_transformers_generates(host: Host) -> None:
    fresh(host)
    model, codec = host.backbone.model, host.backbone.codec
    encoded = codec.encode(SAMPLES[:4], answers=False)
    with host.mixing({}):
        expected = model.generate(  # type: ignore[operator]
            **encoded.inputs,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=list(codec.stop_ids),
            pad_token_id=codec.pad_id,
        )
    length = encoded.inputs["input_ids"].shape[1]
    texts = [codec.decode(row[length:].tolist()) for row in expected]
    assert greedy(host, SAMPLES[:4], ({},), 5) == texts
    # Two passes of the same mix double the logits and so change nothing.
    assert greedy(host, SAMPLES[:4], ({}, {}), 5) == texts
    # Batches do not change what is generated (left padding).
    longer = Sample("x", (Turn("Say blue, and please do take your time with it.", "blue"),))
    assert greedy(host, [*SAMPLES[:2], longer], ({},), 5)[:2] == texts[:2]


def test_a_later_phase_goes_on_in_the_data_and_the_schedule(host: Host) -> None:
    seen: list[str] = []

    def watching(view: View) -> Tensor:
        seen.extend(sample.id for sample in view.samples)
        return answer_loss(view.forward({"local": 1.0}))

    falling = Optim(0.01, schedule="linear", total_steps=4)
    step = Step(LOCAL, watching, falling)
    whole = train(fresh(host), (phase([step], 4),)).losses["p"]
    once = list(seen)
    seen.clear()
    parts = (phase([step], 1), replace(phase([step], 3, first=1), name="q"))
    done = train(fresh(host), parts)
    assert seen == once
    assert done.losses["p"] == whole[:1]
    # Moments begin anew with a phase, so only the loss that comes before any step of `q` is the same.
    assert done.losses["q"][0] == whole[1]
    assert done.losses["q"][1:] != whole[2:]
    assert phase([step], 3, first=1).describe() != phase([step], 3).describe()


def test_the_steps_of_a_batch_pass_notes_on(host: Host) -> None:
    found: list[float] = []

    def first(view: View) -> Tensor:
        assert not view.notes
        view.notes["answer"] = torch.tensor(float(view.step))
        return answer_loss(view.forward({"local": 1.0}))

    def second(view: View) -> Tensor:
        found.append(view.notes["answer"].item())
        return answer_loss(view.forward({"local": 1.0}))

    steps = [Step(LOCAL, first, Optim(0.01), name="one"), Step(LOCAL, second, Optim(0.01), name="two")]
    actor = fresh(host)
    train(Actor(actor.name, actor.backbone, actor.hosts, actor.rng, actor.driver, flops=FlopMeter()), (phase(steps),))
    assert found == [0.0, 0.0, 1.0, 2.0]  # the first one is the ledger's dry row


def test_use_counts_go_on_from_phase_to_phase(host: Host) -> None:
    client = ClientData("alice", "tiny", (TaskData("say", "open-ended", "exact", SAMPLES, [], []),))
    stream = ClientStream(client, StreamOptions(sampler="least_used", protocol="static"), 0, 2, 0, 4)
    parts = [Phase(name, (plain(),), 2, stream, first=first) for name, first in (("p", 0), ("q", 2))]
    whole = train(fresh(host), [Phase("w", (plain(),), 4, stream)]).private[COUNTS]
    assert torch.equal(train(fresh(host), parts).private[COUNTS], whole)
