"""FedMKT on two tokenizers: who teaches what, what travels, and what is learned from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from distilling_support import LLAMA, NO_PUBLIC_SET, QWEN, place_of, set_up
from pfl_platform.adapters.surfaces import Keys
from pfl_platform.distillation.losses import divergence
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ServerState
from pfl_platform.federation.rounds import RoundResult, client_task, drive, one_round, prepare
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.view import BatchView
from pfl_plugins.fedmkt.config import Config
from pfl_plugins.fedmkt.equations import upload_bytes
from pfl_plugins.fedmkt.learning import MIX, Lesson

OWN = ("objective.samples=6", "objective.lr=0.01", "objective.top_k=16", "training.lr=0.005", "evaluation.every=9")
setup = partial(set_up, "fedmkt", "rounds=3", *OWN)


class Played:
    """A federation after some rounds, without the evaluation of the last."""

    def __init__(self, rounds: int, *sets: str) -> None:
        self.chosen = setup(*sets)
        self.fed, self.worker = place_of(self.chosen)
        self.store = self.fed.store
        self.engine = InProcessEngine(self.worker)
        self.progress = drive(prepare(self.fed, self.chosen.parts), self.engine)
        self.results: list[RoundResult] = []
        for index in range(rounds):
            result = drive(one_round(self.fed, self.chosen.parts, self.progress, index), self.engine)
            self.results.append(result)
            self.progress = result.progress

    def server(self, key: str) -> dict[str, Tensor]:
        return self.store.get(self.progress.server.tensors[key])

    def report(self, round_index: int) -> Mapping[str, Any]:
        return self.results[round_index].progress.server.report


@pytest.fixture(scope="module")
def played() -> Played:
    return Played(2)


def test_a_client_sends_its_top_predictions_and_losses_and_nothing_else(played: Played) -> None:
    for client, outcome in played.results[0].outcomes.items():
        sent = played.store.get(outcome.sent)  # type: ignore[arg-type]
        assert sorted(sent) == ["knowledge/ids", "knowledge/logp", "knowledge/losses"]
        assert (sent["knowledge/logp"].dtype, sent["knowledge/ids"].dtype) == (torch.float16, torch.int32)
        tokens = len(sent["knowledge/logp"])
        assert outcome.cost.up_payload == upload_bytes(tokens, 16, 512, 6)
        state = played.store.get(outcome.state)  # type: ignore[arg-type]
        assert torch.equal(state["knowledge/losses"], sent["knowledge/losses"])
        assert not any(key.startswith("taught") for key in state)
        assert outcome.cost.down_payload == 0, client
    for outcome in played.results[1].outcomes.values():
        assert outcome.cost.down_payload == outcome.cost.up_payload  # one server model per backbone: as much back
        assert any(name.startswith("loss/taught") for name in outcome.metrics)


def test_the_server_learns_from_the_best_client_where_it_is_better(played: Played) -> None:
    losses = {
        client: played.store.get(outcome.sent)["knowledge/losses"]  # type: ignore[arg-type]
        for client, outcome in played.results[0].outcomes.items()
    }
    lowest = torch.stack(list(losses.values())).amin(0)
    told = played.report(0)
    assert sum(told["best_client"].values()) == 6
    for client, count in told["best_client"].items():
        assert count == int((losses[client] == lowest).sum())
    for name in (LLAMA, QWEN):
        server = told["server"][name]
        assert server["best_clients"] == pytest.approx(float(lowest.mean()))
        assert 0 < server["learnt"] <= 6
        assert server["loss_after"] < server["loss_before"]
        # What a round leaves is what the next begins with.
        assert played.report(1)["server"][name]["loss_before"] == pytest.approx(server["loss_after"])
        assert torch.equal(played.server(f"taught/{name}")["taught/losses"], played.server(f"losses/{name}")["losses"])


def view(played: Played, refs: Mapping[str, Tensor], backbone: str = LLAMA) -> BatchView:
    public = Lesson(played.fed, Config(samples=6), backbone).public
    some = [public.samples[k] for k in (4, 1)]
    return BatchView(played.worker.host, backbone, some, step=0, rng=lambda *_: torch.Generator(), refs=refs)


def test_the_loss_is_the_papers_on_numbers_that_can_be_redone(played: Played) -> None:
    host = played.worker.host(LLAMA)
    host.load(played.store.get(played.progress.states["a"]))
    host.select(Keys("local/*"))
    taught = played.server(f"taught/{LLAMA}")
    own = taught["taught/losses"].clone()
    own[4] += 1.0  # the server is better on sample 4, and not on sample 1
    config = Config(samples=6, lm_weight=0.75)
    seen = view(played, {**taught, "knowledge/losses": own})
    found = Lesson(played.fed, config, LLAMA)(seen).mean()
    lesson = Lesson(played.fed, config, LLAMA)
    begin = int(lesson.counts[:4].sum())
    at = slice(begin, begin + int(lesson.counts[4]))
    output = view(played, {}).forward(MIX, train=False)
    first = output.answers[: output.encoded.answers.per_row[0]]  # the batch's first row is sample 4
    each = divergence(first, taught["taught/logp"][at].float().exp(), taught["taught/ids"][at])
    expected = 0.75 * answer_loss(output).mean() + 0.25 * each.mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    alone = Lesson(played.fed, Config(samples=6, official_no_lm=True), LLAMA)(seen).mean()
    assert float(alone.detach()) == pytest.approx(float(each.mean().detach()), rel=1e-4)
    late = Lesson(played.fed, Config(samples=6, official_no_lm=True), LLAMA)(view(played, taught))
    assert bool((late > 0).all())  # who has not measured itself yet learns all


def test_who_was_sent_nothing_learns_nothing(played: Played) -> None:
    host = played.worker.host(LLAMA)
    chosen = host.select(Keys("local/*"))
    rows = Lesson(played.fed, Config(samples=6), LLAMA)(view(played, {}))
    gradients = torch.autograd.grad(rows.sum(), list(chosen.values()))
    assert rows.tolist() == [0.0, 0.0]
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_clients_learn_from_the_server_from_their_second_turn_on(played: Played) -> None:
    task = [
        client_task(played.fed, played.chosen.parts, played.progress, played.fed.clients[0], index) for index in (0, 1)
    ]
    assert [[phase.name for phase in one.phases] for one in task] == [["local"], ["taught", "local"]]
    assert [phase.amount for phase in task[1].phases] == [3, 2]


def test_one_server_model_teaches_clients_of_another_tokenizer() -> None:
    one = Played(1, f"objective.server_model={QWEN}", "cohort=2", "objective.top_k=0")
    assert [key for key in one.progress.server.tensors if key.startswith("model/")] == [f"model/{QWEN}"]
    told = one.server(f"taught/{LLAMA}")
    assert told["taught/logp"].shape[1] == 768  # in the clients' own vocabulary
    counts = Lesson(one.fed, Config(samples=6), LLAMA).counts
    assert len(told["taught/logp"]) == int(counts.sum())
    known = told.get("taught/known", torch.ones(len(told["taught/logp"])).bool())
    assert bool(known.any())
    for outcome in one.results[0].outcomes.values():
        sent = one.store.get(outcome.sent)  # type: ignore[arg-type]
        assert "knowledge/ids" not in sent  # the whole vocabulary needs no numbers
    absent = next(client.client_id for client in one.fed.clients if client.client_id not in one.results[0].outcomes)
    assert one.chosen.parts.aggregator.reply(one.fed, one.progress.server, absent)
    assert one.chosen.parts.aggregator.reply(one.fed, ServerState(), absent) == {}


def test_what_is_missing_is_said_before_round_0() -> None:
    with pytest.raises(UserError, match=NO_PUBLIC_SET):
        setup(public=False)
    with pytest.raises(UserError, match=r"needs keys 'knowledge/...'"):
        setup("objective=sft", "objective.options={}")
