"""The personalizer `replied`: clients are scored with what the server would send them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from osrm_support import SMALL, Run, federation, part
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation.rounds import personal
from pfl_platform.federation.tasks import Outcome
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.testing.bench import samples


def test_replied_is_the_aggregate_that_a_hand_would_make() -> None:
    sets = ("training.lr=0.05", "local_steps=6", "rounds=1", "training.schedule=constant")
    own = Run(federation(*sets, method="fedit")).go()
    merged = Run(federation(*sets, "personalizer=replied", method="fedit")).go()
    for name in "ab":
        assert all(torch.equal(value, merged.state(name)[key]) for key, value in own.state(name).items())
    states = [own.state(name) for name in "ab"]  # 8 examples each
    host = own.worker.host(SMALL)
    host.load({key: (states[0][key] + states[1][key]) / 2 for key in states[0] if key.startswith("global/")})
    differing = 0
    for name, other in (("a", "b"), ("b", "a")):
        asked = [*samples(f"{name}t", 3), *samples(f"{other}t", 3)]
        by_hand = [text for k in (0, 3) for text in greedy(host, asked[k : k + 3], ({"global": 1.0},), 3)]
        assert merged.texts(name) == by_hand
        differing += own.texts(name) != by_hand
    assert differing
    # The exported tensors are those that were scored.
    found = personal(merged.fed, merged.setup.parts, merged.progress, "a")
    assert all(torch.allclose(found[key], host.params[key]) for key in found if key.startswith("global/"))


def test_the_reply_of_an_evaluation_is_booked_as_one() -> None:
    run = Run(federation("personalizer=replied", "cohort=1")).go(2)
    values = sum(value.numel() for key, value in run.state("a").items() if key.startswith("local/"))
    for outcomes in run.outcomes:
        assert sorted(outcomes) == ["a", "b"]  # the absent client is scored, too
        for outcome in outcomes.values():
            assert outcome.scores
            assert outcome.cost.score_payload == 4 * values
            assert outcome.cost.score_wire > outcome.cost.score_payload
    first, second = ([outcome for outcome in outcomes.values() if outcome.cost.steps] for outcomes in run.outcomes)
    assert [outcome.cost.down_payload for outcome in first] == [0]
    assert [outcome.cost.down_payload for outcome in second] == [4 * values]


def test_replied_under_osrm_is_the_merged_delta_whatever_clients_go_on_from() -> None:
    run = Run(federation("personalizer=replied", "rounds=1", "adapter.r=4", "aggregator.merge_coef=0.5")).go()
    parts = run.setup.parts
    states = {name: run.state(name) for name in "ab"}
    reply = personal(run.fed, parts, run.progress, "a")
    assert torch.equal(parts.objective.receive(dict(states["a"]), reply)["local/layer0.self_attn.q_proj/A"],
                       states["a"]["local/layer0.self_attn.q_proj/A"])  # fmt: skip
    for site, down in part(reply, "A").items():
        merged = Delta(part(reply, "B")[site], down, 2.0).dense(torch.float64)
        total = sum(
            0.5 * Delta(part(state, "B")[site], part(state, "A")[site], 2.0).dense(torch.float64)
            for state in states.values()
        )
        left, values, right = torch.linalg.svd(torch.as_tensor(total))
        best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
        assert torch.allclose(merged, best, atol=1e-5 * float(values[0]))


def test_evaluations_of_replies_are_not_done_again_after_a_kill() -> None:
    whole, cut = (Run(federation("personalizer=replied", "rounds=1")) for _ in range(2))
    whole.go()
    execute, count = cut.worker.execute, len(cut.done)

    def mortal(task: Any, observe: Any = None) -> Outcome:
        if task.stage == "score" and task.actor == "b":
            raise KeyboardInterrupt
        return execute(task, observe)

    cut.worker.execute = mortal  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.go()
    ended = [(task.stage, task.actor) for task, _ in cut.done[count:]]
    assert ended == [("round", "a"), ("round", "b"), ("score", "a")]
    again = Run(federation("personalizer=replied", "rounds=1"), cut.store).go()
    assert [(task.stage, task.actor) for task, _ in again.done] == [("score", "b")]
    assert again.texts("b") == whole.texts("b")
    assert again.outcomes[0]["a"].scores == whole.outcomes[0]["a"].scores


def test_a_recipe_says_when() -> None:
    assert InferenceRecipe(({},)).when == "trained"
    assert federation("personalizer=replied", clients="lone").parts.recipe().when == "replied"
    with pytest.raises(UserError, match="nonsense"):
        federation("personalizer.name=replied", "personalizer.nonsense=1", clients="lone")
