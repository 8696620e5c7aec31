"""Who is drawn into a round: alike, by samples, by who can be reached."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from federation_support import built, copying_client
from pfl_platform.config import Participation
from pfl_platform.data import ClientData, TaskData
from pfl_platform.errors import UserError
from pfl_platform.federation.cohorts import reachable, select
from pfl_platform.federation.components import Federation
from pfl_platform.testing.bench import samples

ROUNDS = 2000


def client(name: str, amount: int) -> ClientData:
    return ClientData(name, "tiny-llama-s", (TaskData(name, "open-ended", "exact", samples(name, amount), (), ()),))


def federation(sizes: dict[str, int], cohort: int = 0, seed: int = 0, **participation: Any) -> Federation:
    """What choosing a cohort looks at."""
    config = SimpleNamespace(cohort=cohort, participation=Participation(**participation))
    clients = [client(name, amount) for name, amount in sizes.items()]
    return cast("Federation", SimpleNamespace(config=config, clients=clients, seed=seed))


def counted(fed: Federation) -> Counter[str]:
    return Counter(item.client_id for index in range(ROUNDS) for item in select(fed, index))


def test_all_take_part_unless_something_is_said() -> None:
    assert [item.client_id for item in select(federation({"b": 1, "a": 1}), 0)] == ["b", "a"]


def test_a_cohort_is_drawn_alike() -> None:
    found = counted(federation({"a": 1, "b": 9, "c": 1, "d": 1}, cohort=2))
    assert sum(found.values()) == 2 * ROUNDS
    assert all(abs(found[name] / ROUNDS - 0.5) < 0.05 for name in "abcd")  # 0.05 is 4.5 standard deviations


def test_a_cohort_is_drawn_by_samples() -> None:
    found = counted(federation({"a": 1, "b": 3, "c": 6}, cohort=1, by="samples"))
    assert all(abs(found[name] / ROUNDS - share) < 0.05 for name, share in {"a": 0.1, "b": 0.3, "c": 0.6}.items())


def test_clients_are_there_in_their_share_of_rounds() -> None:
    fed = federation({"a": 1, "b": 1, "c": 1}, availability={"a": 0.2, "*": 0.7, "c": 1.0})
    found = counted(fed)
    assert found["c"] == ROUNDS
    assert abs(found["a"] / ROUNDS - 0.2) < 0.04
    assert abs(found["b"] / ROUNDS - 0.7) < 0.05


def test_a_cohort_is_drawn_from_those_that_are_there() -> None:
    fed = federation({name: 1 for name in "abcdef"}, cohort=2, availability={"*": 0.5})
    for index in range(50):
        there = [item.client_id for item in reachable(fed, index)]
        chosen = [item.client_id for item in select(fed, index)]
        assert chosen == [name for name in there if name in chosen]
        assert len(chosen) == min(2, len(there))


def test_a_round_has_a_client_even_where_nobody_is_there() -> None:
    fed = federation({"a": 1, "b": 1}, availability={"*": 0.01})
    assert {len(select(fed, index)) for index in range(100)} == {1}


def test_a_round_does_not_depend_on_the_order_of_clients_or_on_others_shares() -> None:
    one = federation({"a": 1, "b": 1, "c": 1}, availability={"a": 0.3, "b": 0.5, "c": 1.0})
    other = federation({"c": 1, "b": 1, "a": 1}, availability={"a": 0.3, "b": 0.9, "c": 1.0})
    for index in range(50):
        there, again = ({item.client_id for item in reachable(fed, index)} for fed in (one, other))
        assert ("a" in there) == ("a" in again)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_is_above_nothing_and_at_most_one(share: float) -> None:
    with pytest.raises(ValueError, match="availability"):
        Participation(availability={"a": share})


def test_a_method_that_needs_everybody_refuses_those_who_may_be_away() -> None:
    clients = [copying_client(name, "tiny-llama-s") for name in "ab"]
    sets = ("rounds=8", "objective.variant=F", 'participation.availability={"*": 0.5}', "backbone_options.init=0")
    with pytest.raises(UserError, match=r"none may miss a round; leave `cohort` at 0"):
        built("feddpa", clients, sets)
