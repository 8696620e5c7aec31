"""Potara: its equations on numbers that can be redone, its weights against a reference, and both parents in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.line import barrier, walk
from pfl_platform.federation.records import progress_of
from pfl_platform.federation.setup import build
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.testing.checks import states
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.view import BatchView
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.equations import Moments, Traces, clipped_covariance, common_damping, traces
from pfl_plugins.potara.personalizer import Merge
from pfl_plugins.potara.statistic import WEIGHT, closed_form, drawn

BACKBONES = ("tiny-llama-s", "tiny-llama-m")


def moments(g: list[list[float]], l: list[list[float]]) -> Moments:  # noqa: E741
    sums = Moments.zeros(torch.zeros(len(g[0])))
    for one, other in zip(g, l, strict=True):
        sums.add(torch.tensor(one), torch.tensor(other))
    return sums


def test_fisher_and_correlation_by_hand() -> None:
    # Three coordinates, two samples: g = (1, 3), (2, 2), (0, 0); l = (2, 4), (1, 3), (0, 0)
    sums = moments([[1, 2, 0], [3, 2, 0]], [[2, 1, 0], [4, 3, 0]])
    g, l = sums.fisher()  # noqa: E741
    assert g.tolist() == [5.0, 4.0, 0.0]  # squares, then the mean; not the square of the mean, which is 4
    assert l.tolist() == [10.0, 5.0, 0.0]
    assert sums.correlation().tolist() == pytest.approx([1.0, 0.0, 0.0])  # 2 does not vary, nor does 0
    assert common_damping({"x": sums}, 0.1) == pytest.approx(0.1 * 24 / 6)


def test_the_weight_by_hand_and_its_trace() -> None:
    # S_g = 1 / 5, S_l = 1 / 10, rho = 1: rho sqrt(S_g S_l) = 0.1414 is clipped to 0.1, so lambda = 0
    sums = moments([[1], [3]], [[2], [4]])
    assert traces({"x": sums}, 1e-12) == pytest.approx((0.2, 0.1, 0.1))
    assert closed_form({"x": sums}, 1e-12, "client")["all"] == pytest.approx(0.0, abs=1e-9)
    # The better the federated model is determined (smaller a), the larger its weight.
    assert Traces(1.0, 3.0, 0.5).weight() == pytest.approx(2.5 / 3)
    assert Traces(1.0, 3.0, 0.5).merged(2.5 / 3) == pytest.approx((3 - 0.25) / 3)


@pytest.mark.parametrize("seed", range(20))
def test_weights_lie_in_the_unit_interval_and_the_merged_trace_below_both(seed: int) -> None:
    """Also where every covariance is clipped: rho of 1 and of -1, and variances that differ by orders."""
    draw = torch.Generator().manual_seed(seed)
    s_g, s_l = (torch.exp(4 * torch.randn(50, generator=draw, dtype=torch.float64)) for _ in range(2))
    rho = (
        torch.randn(50, generator=draw, dtype=torch.float64).sign()
        if seed % 2
        else 2 * torch.rand(50, generator=draw).double() - 1
    )
    common = clipped_covariance(rho, s_g, s_l)
    assert bool((common >= 0).all())
    assert bool((common <= torch.minimum(s_g, s_l)).all())
    found = Traces(float(s_g.sum()), float(s_l.sum()), float(common.sum()))
    weight = found.weight()
    assert 0.0 <= weight <= 1.0
    assert found.merged(weight) <= min(found.a, found.b) * (1 + 1e-12)
    assert found.merged(weight) <= min(found.merged(w / 100) for w in range(101)) * (1 + 1e-12)


def test_undefined_weights_are_one_half() -> None:
    nothing = moments([[0.0, 0.0]], [[0.0, 0.0]])
    assert common_damping({"x/A": nothing}, 1e-3) == 0.0
    assert closed_form({"x/A": nothing}, 0.0, "client") == {"all": 0.5}
    same = moments([[1.0], [2.0]], [[1.0], [2.0]])  # equal models: a = b = c
    assert closed_form({"x/A": same}, 1e-3, "module") == {"x": 0.5}
    # A module without any information beside one with: its own weight is 1/2, whatever the other's.
    mixed = {"x/A": nothing, "y/A": moments([[1.0], [-1.0]], [[3.0], [5.0]])}
    assert closed_form(mixed, common_damping(mixed, 1e-3), "module")["x"] == 0.5


def test_granularity_groups_the_params() -> None:
    sums = {f"{site}/{part}": moments([[1.0], [2.0]], [[3.0], [-1.0]]) for site in ("x", "y") for part in "AB"}
    assert set(closed_form(sums, 1e-3, "factor")) == {"A", "B"}
    assert set(closed_form(sums, 1e-3, "module")) == {"x", "y"}


def test_factors_are_merged_apart_and_products_are_when_asked() -> None:
    state = {
        "global/x/A": torch.tensor([[4.0, 0.0]]), "global/x/B": torch.tensor([[1.0], [0.0]]),
        "local/x/A": torch.tensor([[0.0, 2.0]]), "local/x/B": torch.tensor([[0.0], [1.0]]),
        f"{WEIGHT}/all": torch.tensor(0.25, dtype=torch.float64),
    }  # fmt: skip
    found = Merge(MergeConfig()).params(state, None)
    assert found["local/x/A"].tolist() == [[1.0, 1.5]]
    assert found["local/x/B"].tolist() == [[0.25], [0.75]]
    # Products: diag(0.25 * 4, 0.75 * 2), of which rank 1 keeps the 1.5.
    product = Merge(MergeConfig(space="delta")).params(state, None)
    assert torch.allclose(product["local/x/B"] @ product["local/x/A"], torch.diag(torch.tensor([0.0, 1.5])), atol=1e-6)
    assert Merge(MergeConfig(weights="fixed", weight=1.0)).params(state, None)["local/x/A"].tolist() == [[4.0, 0.0]]


def test_barrier_by_hand() -> None:
    assert barrier({0.0: 2.0, 0.25: 2.0, 0.5: 1.0, 1.0: 1.0}) == pytest.approx(0.25)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Samples are drawn by use counts, so that a second phase would notice what the first has used."""
    settings = ["backbone_options.init=0", "stream.sampler=least_used"]
    return Bench("potara", tmp_path_factory.mktemp("potara"), BACKBONES, settings, rounds=3)


@pytest.fixture(scope="module")
def run(bench: Bench) -> Path:
    """FedIT stops after the second of three rounds; the adapters of round 1 are kept."""
    return bench.run(**{"objective.fedit_rounds": 2, "keep_rounds": "[1]", "personalizer.samples": 5})


def costs(run: Path, client: str = "a") -> list[Mapping[str, Any]]:
    return [record["clients"][client]["cost"] for record in RunFolder.open(run).rounds()]


def test_both_parents_are_in_one_run(bench: Bench, run: Path) -> None:
    """Bit for bit what `sft` trains, and what `fedit` sends, from the same seed."""
    mine = states(run)
    alone = Bench("sft", bench.folder / "sft", BACKBONES, bench.settings, rounds=3)
    for client, tensors in states(alone.run()).items():
        assert all(torch.equal(mine[client][key], value) for key, value in tensors.items() if key.startswith("local/"))
    together = Bench("fedit", bench.folder / "fedit", BACKBONES, bench.settings, rounds=3)
    out = together.run(keep_rounds="[2]")
    record = RunFolder.open(out).rounds()[1]
    sent = {name: RunFolder.open(out).store.get(address) for name, address in record["server"]["tensors"].items()}
    assert all(torch.equal(mine["a"][key], value) for key, value in sent["tiny-llama-s"].items())


def test_nothing_travels_after_the_last_federated_round(run: Path) -> None:
    first, second, third = costs(run)
    assert first["up_payload"] == second["up_payload"] > 0
    assert third["up_payload"] == 0
    assert third["down_payload"] == second["down_payload"] == first["up_payload"]  # the last average comes down once
    assert third["score_payload"] == 0  # and is not fetched again for evaluation
    assert third["steps"] == 3
    assert first["steps"] == 6


def test_weights_match_a_reference(bench: Bench, run: Path) -> None:
    """Gradients sample by sample by autograd; correlation by numpy; the formula as the spec writes it."""
    folder = RunFolder.open(run)
    setup = build(folder.config, bench.manager, bench.benchmark())
    fed, worker = setup.federation(folder.store), setup.worker(folder.store)
    record = folder.last_round()
    assert record is not None
    state = folder.store.get(progress_of(record).evaluated["a"])
    host = worker.host("tiny-llama-s")
    host.load(state)
    from pfl_platform.federation.rounds import context

    samples = drawn(context(fed, fed.clients[0], 0), 5)
    gradients: dict[str, list[np.ndarray]] = {"global": [], "local": []}
    for slot, rows in gradients.items():
        params: Mapping[str, Tensor] = host.select(fed.adapter.trainable(slot))
        for sample in samples:
            view = BatchView(worker.host, "tiny-llama-s", [sample], step=0, rng=lambda *parts: torch.Generator())
            loss = answer_loss(view.forward({slot: 1.0}, train=False)).sum()
            found = torch.autograd.grad(loss, list(params.values()))
            rows.append(torch.cat([part.flatten() for part in found]).double().numpy())
    g, l = np.stack(gradients["global"]), np.stack(gradients["local"])  # noqa: E741
    fisher_g, fisher_l = (g**2).mean(0), (l**2).mean(0)
    damping = 1e-3 * np.concatenate([fisher_g, fisher_l]).mean()
    s_g, s_l = 1 / (fisher_g + damping), 1 / (fisher_l + damping)
    cov = ((g - g.mean(0)) * (l - l.mean(0))).mean(0)
    spread = np.sqrt(g.var(0) * l.var(0))
    rho = np.divide(cov, spread, out=np.zeros_like(cov), where=spread > 1e-12 * np.sqrt(fisher_g * fisher_l))
    low = np.minimum(np.sqrt(s_g / s_l), np.sqrt(s_l / s_g))
    c = (np.clip(rho, 0, low) * np.sqrt(s_g * s_l)).sum()
    expected = (s_l.sum() - c) / (s_g.sum() + s_l.sum() - 2 * c)
    assert 0.01 < expected < 0.99
    assert float(state[f"{WEIGHT}/all"]) == pytest.approx(expected, rel=1e-4)
    assert record["clients"]["a"]["metrics"]["weight"] == pytest.approx(expected, rel=1e-4)


def test_the_line_needs_no_training(bench: Bench, run: Path) -> None:
    before = {file: file.read_bytes() for file in (run / "rounds").iterdir()}
    found = walk(run, points=3, plugins=bench.manager, benchmark=bench.benchmark())
    assert json.loads((run / "line.json").read_text(encoding="utf-8"))["clients"].keys() == found["clients"].keys()
    assert before == {file: file.read_bytes() for file in (run / "rounds").iterdir()}
    assert set(found["rounds"]) == {1, 3}
    assert found["rounds"][1]["megabytes"] < found["rounds"][3]["megabytes"]
    entry = found["clients"]["a"]
    assert [point[0] for point in entry["line"]] == [0.0, 0.5, 1.0]
    losses = {point[0]: point[1] for point in entry["line"]}
    assert entry["barrier"] == pytest.approx(barrier(losses))
    assert losses[0.0] != losses[1.0]
    metrics = RunFolder.open(run).rounds()[-1]["clients"]["a"]["metrics"]
    assert entry["weight"] == pytest.approx(metrics["weight"])


def test_a_run_without_two_models_has_no_line(bench: Bench) -> None:
    alone = Bench("sft", bench.folder / "no-line", BACKBONES, bench.settings, rounds=1)
    with pytest.raises(UserError, match="not made of two models"):
        walk(alone.run(), plugins=alone.manager, benchmark=alone.benchmark())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective.fedit_rounds": 4}, "objective.fedit_rounds is 4, but the run has 3 rounds"),
        ({"objective": "fedit"}, "has no 'local'"),
        ({"keep_rounds": "[7]"}, "keep_rounds names round 7, but the run has 3"),
    ],
)
def test_bad_input_is_one_sentence(bench: Bench, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(bench.config(**changes), bench.manager, bench.benchmark())
