"""HETLoRA: tails, pruning, padding and weights on numbers that can be redone, and in a federation of three ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from federation_support import Federate, federating
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Update
from pfl_plugins.hetlora.aggregator import ByNorm, merged
from pfl_plugins.hetlora.config import AggregateConfig, Config
from pfl_plugins.hetlora.equations import cut, norms, rank_of, tail, zeroed
from pfl_plugins.hetlora.objective import RANK, TAIL, HetLora

Q = "global/layer0.q"


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    return federating(tmp_path, "hetlora", "training.lr=0.01")


def factors(a: list[list[float]], b: list[list[float]]) -> dict[str, torch.Tensor]:
    return {f"{Q}/A": torch.tensor(a), f"{Q}/B": torch.tensor(b)}


def test_the_norm_of_the_product_needs_no_product() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {f"{Q}/A": torch.randn(3, 20, generator=generator), f"{Q}/B": torch.randn(30, 3, generator=generator)}
    dense = torch.linalg.matrix_norm(params[f"{Q}/B"].double() @ params[f"{Q}/A"].double())
    assert norms(params)[Q] == pytest.approx(float(dense), rel=1e-12)


def test_the_server_pads_with_zeros_and_weighs_by_norm() -> None:
    """||B A||: 1 * 3 and, of rank 2, sqrt(1 + 0): weights 3/4 and 1/4."""
    small, large = factors([[3.0, 0.0]], [[1.0], [0.0]]), factors([[1.0, 0.0], [0.0, 8.0]], [[0.0, 0.0], [1.0, 0.0]])
    updates = [Update(name, "m", size, "", None) for name, size in (("a", 1), ("b", 3))]  # type: ignore[arg-type]
    weights = ByNorm(AggregateConfig())._weights(updates, [small, large])
    assert weights[Q] == pytest.approx([0.75, 0.25])
    found = merged([small, large], weights, {})
    assert found[f"{Q}/A"].tolist() == [[0.75 * 3 + 0.25, 0.0], [0.0, 2.0]]
    assert found[f"{Q}/B"].tolist() == [[0.75, 0.0], [0.25, 0.0]]
    by_size = ByNorm(AggregateConfig(weighting="examples"))._weights(updates, [small, large])
    assert by_size[Q] == [0.25, 0.75]
    nothing = {key: torch.zeros_like(value) for key, value in small.items()}
    assert ByNorm(AggregateConfig())._weights(updates, [nothing, nothing])[Q] == [0.5, 0.5]


def test_components_that_nobody_has_in_a_round_keep_what_the_server_had() -> None:
    former = factors([[9.0, 9.0], [5.0, 6.0]], [[9.0, 7.0], [9.0, 8.0]])
    found = merged([factors([[1.0, 2.0]], [[3.0], [4.0]])], {Q: [1.0]}, former)
    assert found[f"{Q}/A"].tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert found[f"{Q}/B"].tolist() == [[3.0, 7.0], [4.0, 8.0]]


def test_a_client_takes_its_rank_of_the_reply_and_keeps_what_the_server_lacks() -> None:
    client = HetLora(Config(gamma=0.5, r_min=1))
    own = factors([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]], [[0.0, 0.0, 0.0]])  # rank 2 of 3: one is pruned
    reply = factors([[5.0, 5.0], [6.0, 8.0], [7.0, 7.0]], [[4.0, 3.0, 2.0]])
    state = client.receive(dict(own), reply)
    assert state[f"{Q}/A"].tolist() == [[5.0, 5.0], [6.0, 8.0], [0.0, 0.0]]
    assert state[f"{Q}/B"].tolist() == [[4.0, 3.0, 0.0]]
    assert (state[RANK].item(), state[TAIL].item()) == (2.0, 30.0)  # |3| * |(6, 8)|
    less = client.receive(dict(own), cut(reply, 1))
    assert less[f"{Q}/A"].tolist() == [[5.0, 5.0], [2.0, 2.0], [0.0, 0.0]]
    assert less[f"{Q}/B"].tolist() == [[4.0, 0.0, 0.0]]


@pytest.mark.parametrize(("begun", "rank"), [(9.9, 2), (10.1, 1)])
def test_a_tail_that_has_shrunk_is_cut_off(begun: float, rank: int) -> None:
    client = HetLora(Config(gamma=0.5, r_min=1))
    params = factors([[1.0, 0.0], [3.0, 4.0]], [[1.0, 2.0]])  # tail 2 * 5
    after = client.pruned(dict(params), {RANK: torch.tensor(2.0), TAIL: torch.tensor(begun)})
    assert rank_of(after) == rank
    assert after[f"{Q}/A"].shape == (2, 2)
    kept = HetLora(Config(gamma=0.5, r_min=2)).pruned(dict(params), {RANK: torch.tensor(2.0), TAIL: torch.tensor(99.0)})
    assert rank_of(kept) == 2
    never = HetLora(Config(gamma=0.5, r_min=1, prune=False))
    assert rank_of(never.pruned(dict(params), {RANK: torch.tensor(2.0), TAIL: torch.tensor(99.0)})) == 2


def test_the_regulariser_has_a_gradient_and_the_re_implementation_has_none() -> None:
    params = {key: value.requires_grad_() for key, value in factors([[1.0, 0.0], [3.0, 4.0]], [[1.0, 2.0]]).items()}
    refs = {RANK: torch.tensor(2.0)}
    value = HetLora(Config(gamma=0.5, r_min=1, lam=0.1)).tail_weight(params, refs)
    assert value is not None
    value.backward()
    assert value.item() == pytest.approx(1.0)  # 0.1 * 2 * 5
    assert params[f"{Q}/B"].grad is not None
    assert params[f"{Q}/B"].grad.tolist() == [[0.0, pytest.approx(0.5)]]  # 0.1 * 5
    params[f"{Q}/B"].grad = None
    detached = HetLora(Config(gamma=0.5, r_min=1, lam=0.1, official_detached=True)).tail_weight(params, refs)
    assert detached is not None
    detached.backward()
    assert params[f"{Q}/B"].grad is None
    assert tail({key: torch.zeros_like(part) for key, part in params.items()}, 1).item() == 0.0


def test_pruned_components_stay_zero_and_do_not_travel(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client is made to prune in its first round: rank 4 becomes 2."""
    monkeypatch.setattr(
        HetLora,
        "pruned",
        lambda self, params, refs: {**params, **zeroed(params, 2)} if int(refs[RANK]) == 4 else params,
    )
    rounds = federate(clients=2).go()
    first = rounds.outcomes["a"].cost
    sites = rounds.fed.adapter.sites(rounds.fed.load("tiny-llama-s"))
    values = sum(site.in_features + site.out_features for site in sites)
    assert first.up_payload == 4 * 2 * values
    rounds.go(2)
    assert rounds.outcomes["a"].cost.down_payload == rounds.outcomes["a"].cost.up_payload == first.up_payload
    state = rounds.state("a")
    assert rank_of({key: value for key, value in state.items() if key.startswith("global/")}) == 2
    assert all(not value[:, 2:].any() for key, value in state.items() if key.endswith("/B"))
    assert rounds.outcomes["a"].metrics["rank"] == 2.0


def test_clients_of_three_ranks_and_one_that_comes_late(federate: Federate) -> None:
    rounds = federate(clients=4, own={"a": {"r": 6}, "d": {"r": 2}}, cohort=1)
    own = {"a": 6, "b": 4, "c": 4, "d": 2}
    joined: set[str] = set()
    for _ in range(8):
        rounds.go()
        (client,) = rounds.tasks
        joined.add(client)
        assert all(
            value.shape[0 if key.endswith("/A") else 1] == own[client] for key, value in rounds.sent(client).items()
        )
        assert all(value.isfinite().all() for value in rounds.sent(client).values())
        for other in own:
            reply = rounds.reply(other)
            assert all(part.shape[0] <= own[other] for key, part in reply.items() if key.endswith("/A"))
    assert joined >= {"a", "d"}


def test_clients_that_differ_in_more_than_rank_are_refused(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"'a' has scale=1.0 and that of 'b' scale=2.0; give them the same"):
        federate(own={"a": {"scale": 1.0}})


def test_flexlora_runs_as_a_method_on_clients_of_different_ranks(federate: Federate) -> None:
    """The server's delta is the mean of the clients' deltas, and each gets the best approximation in its rank."""
    rounds = federate(method="flexlora", own={"a": {"r": 2}}).go()
    examples = [client.num_examples for client in rounds.fed.clients]
    for key, received in rounds.reply("b").items():
        if not key.endswith("/A"):
            continue
        pair = [(sent[key[:-1] + "B"].double(), sent[key].double()) for sent in map(rounds.sent, "ab")]
        mean = sum(size * b @ a for size, (b, a) in zip(examples, pair, strict=True)) / sum(examples)
        u, s, v = torch.linalg.svd(torch.as_tensor(mean), full_matrices=False)
        best = u[:, :4] * s[:4] @ v[:4]
        found = rounds.reply("b")[key[:-1] + "B"].double() @ received.double()
        assert torch.allclose(found, best, atol=1e-6)
        assert rounds.reply("a")[key].shape[0] == 2
