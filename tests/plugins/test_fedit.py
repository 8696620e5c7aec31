"""FedIT's server: sizes of data as weights, averages within a backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from federation_support import federating

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_report_says_how_much_each_client_weighs(tmp_path: Path) -> None:
    """The kit's clients have 12, 16 and 20 training samples; a and b have one backbone, c another."""
    rounds = federating(tmp_path, "fedit")(clients=3).go()
    twelve, sixteen = 12 / 28, 16 / 28
    pair = {"a": pytest.approx(twelve), "b": pytest.approx(sixteen)}
    assert rounds.progress.server.report["weights"] == {"a": pair, "b": pair, "c": {"c": 1.0}}
    reply = rounds.reply("a")
    sent = {name: rounds.sent(name) for name in ("a", "b")}
    for key, value in reply.items():
        expected = twelve * sent["a"][key].double() + sixteen * sent["b"][key].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)


def test_equal_weights_are_an_option_and_who_is_absent_weighs_nothing(tmp_path: Path) -> None:
    rounds = federating(tmp_path, "fedit")(clients=3, cohort=1, **{"aggregator.options.weighting": "uniform"}).go()
    (present,) = rounds.outcomes
    same = ("a", "b") if present in ("a", "b") else ("c",)
    assert rounds.progress.server.report["weights"] == {name: {present: 1.0} for name in same}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fedit", ()),
        ("nbs", ()),
        ("fedet", ("aggregator.server=group_average",)),
        ("perada", ("aggregator.epochs=1", "public.size=8")),
    ],
)
def test_shared_params_reach_a_backbone_of_which_nobody_took_part(
    method: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    """P and Q mean the same everywhere, so whoever joins late starts from what the others have made of them."""
    changes = {"cohort": 1, "adapter": "pqlora", **dict(item.split("=") for item in settings)}
    rounds = federating(tmp_path, method)(clients=3, **changes).go()
    (present,) = [name for name in rounds.outcomes if name in ("a", "b", "c")]
    absent = "c" if present in ("a", "b") else "a"
    sent = {key: value for key, value in rounds.sent(present).items() if "/block" in key}
    found = {key: value for key, value in rounds.reply(absent).items() if not key.startswith("local/")}
    shared = [key for key in sent if not key.startswith("local/")]
    assert shared
    assert sorted(found) == sorted(shared)
    assert all(torch.equal(found[key], sent[key]) for key in shared)
