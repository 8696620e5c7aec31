"""FedSim and FedAlt of 2204.03809: one model of two parts, trained at once or in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from federation_support import Federate, federating
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.federation.rounds import context
from pfl_platform.testing.rounds import Rounds
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.view import BatchView
from pfl_plugins.fedsim.objective import added


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "fedsim", "training.lr=0.01")


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Slots in which something changed."""
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def view_of(rounds: Rounds, client: str) -> BatchView:
    host = rounds.worker.host(rounds.fed.host_of(client))
    host.load(rounds.state(client))
    samples = rounds.fed.clients[0].tasks[0].train[:2]
    return BatchView(
        lambda _: host, host.backbone.name, samples, step=0, rng=lambda *parts: torch.Generator().manual_seed(0)
    )


def test_logits_of_two_passes_are_added_and_both_parts_learn(federate: Federate) -> None:
    rounds = federate(**{"objective.options.combine": "logit_sum"}).go()
    view = view_of(rounds, "a")
    shared, own = (view.forward({slot: 1.0}, grad=False, whole=True) for slot in ("global", "local"))
    expected = answer_loss(replace(own, scores=shared.logits + own.logits))
    host = rounds.worker.host("tiny-llama-s")
    chosen = host.select(Keys("global/*", "local/*"))
    found = added(view)
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = torch.autograd.grad(found.sum(), list(chosen.values()))
    reached = {key.split("/")[0] for key, value in zip(chosen, gradients, strict=True) if value.any()}
    assert reached == {"global", "local"}
    host.select(Keys())


def test_one_pass_holds_both_parts(federate: Federate) -> None:
    """`hidden_sum` is the network whose adapted maps have both deltas: the same as one adapter of twice the rank."""
    rounds = federate().go(2)
    view = view_of(rounds, "a")
    both = view.forward(rounds.parts.objective.mix, grad=False, whole=True).logits
    state = rounds.state("a", "local/*", "global/*")
    host = rounds.worker.host("tiny-llama-s")
    dense = {
        name: sum(2.0 * state[f"{slot}/{name}/B"] @ state[f"{slot}/{name}/A"] for slot in ("local", "global"))
        for name in host.layers
    }
    for name, layer in host.layers.items():
        layer.shift = dense[name]  # type: ignore[assignment]
    bare = view.forward({}, grad=False, whole=True).logits
    for layer in host.layers.values():
        layer.shift = None
    assert torch.allclose(both, bare, atol=1e-4)
    assert not torch.allclose(both, view.forward({"local": 1.0}, grad=False, whole=True).logits, atol=1e-4)


def test_both_are_trained_at_once_and_only_the_shared_part_travels(federate: Federate) -> None:
    rounds = federate()
    before = rounds.state("a", "local/*", "global/*")
    rounds.go()
    after = rounds.state("a", "local/*", "global/*")
    assert moved(before, after) == {"local", "global"}
    assert {key.split("/")[0] for key in rounds.sent("a")} == {"global"}
    start = [f"{slot}/layer0.self_attn.q_proj/A" for slot in ("local", "global")]
    assert not torch.equal(before[start[0]], before[start[1]])  # else their gradients would be the same for ever
    kept = {key.split("/")[2] for key in rounds.state("a", "moments/*") if "#" in key}
    assert kept == {"local"}


def test_the_published_leak_overwrites_the_personal_part(federate: Federate) -> None:
    rounds = federate(**{"objective.options.official_leak": "true"}).go(2)
    assert {key.split("/")[0] for key in rounds.received("a")} == {"global", "local"}
    pair = [{k: v for k, v in rounds.received(client).items() if k.startswith("local/")} for client in "ab"]
    assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[0])


def test_the_parts_take_turns_on_successive_batches(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = federate("partial-fedalt", 1, **{"rounds": 3, "local_steps": 5, "objective.options.personal_share": 0.4})
    rounds.go()  # until the memory fills a batch
    ctx = context(rounds.fed, rounds.fed.clients[0], 1)
    own, shared = rounds.parts.objective.phases(ctx)
    assert (own.amount, shared.amount, shared.first) == (2, 3, 2)
    seen: list[tuple[bool, tuple[str, ...]]] = []
    forward = BatchView.forward

    def watched(self: BatchView, *args: Any, **options: Any) -> Any:
        trains = {key.split("/")[0] for key, value in self.params.items() if value.requires_grad}
        if len(self.samples) == 2:  # not the dry row of the ledger
            seen.append(("local" in trains, tuple(sample.id for sample in self.samples)))
            assert len(trains) == 1
        return forward(self, *args, **options)

    monkeypatch.setattr(BatchView, "forward", watched)
    before = rounds.state("a", "local/*", "global/*")
    rounds.go()
    assert [personal for personal, _ in seen] == [True, True, False, False, False]
    stream = ctx.source.open({})
    assert [ids for _, ids in seen] == [tuple(sample.id for sample in stream.batch(step)) for step in range(5)]
    assert moved(before, rounds.state("a", "local/*", "global/*")) == {"local", "global"}


def test_one_step_is_not_enough_for_two_parts(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"has one local step a round, and FedAlt needs one for each of its two parts"):
        federate("partial-fedalt", **{"local_steps": 1})


@pytest.mark.parametrize("method", ["fedsim", "partial-fedalt"])
def test_what_is_evaluated_is_what_was_trained(federate: Federate, method: str) -> None:
    one, two = (federate(method, **{"objective.options.combine": how}) for how in ("hidden_sum", "logit_sum"))
    assert one.parts.recipe().passes == ({"global": 1.0, "local": 1.0},)
    assert two.parts.recipe().passes == ({"global": 1.0}, {"local": 1.0})
    two.go(2)
    view = view_of(two, "a")
    host = two.worker.host("tiny-llama-s")
    (text,) = greedy(host, view.samples[:1], two.parts.recipe().passes, 1)
    row = host.backbone.codec.encode(view.samples[:1], answers=False)
    total: Tensor | None = None
    for slot in ("global", "local"):
        with torch.no_grad(), host.mixing({slot: 1.0}, host.masks(row.inputs)):
            logits = host.backbone.model(**row.inputs).logits[0, -1]
        total = logits if total is None else total + logits
    assert total is not None
    assert text == host.backbone.codec.decode([int(total.argmax())])


def test_a_sum_of_logits_needs_its_personalizer(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"set personalizer=fedsim"):
        federate("fedit", **{"objective": "{name: fedsim, options: {combine: logit_sum}}"})
    with pytest.raises(UserError, match=r"evaluates models of a shared and a personal part only"):
        federate("sft", personalizer="fedsim", **{"evaluation.every": 1}).go()
