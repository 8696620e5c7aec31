"""Nash bargaining: the solution by hand, its residual, its invariances, and the aggregator on two backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfl_platform.federation.setup import build
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_plugins.nbs.equations import bargain, gram, residual, shares


def test_two_players_by_hand() -> None:
    # M = [[2, 1], [1, 2]] is symmetric in the players: 3 a = 1 / a
    found = bargain(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    assert found.tolist() == pytest.approx([3**-0.5, 3**-0.5])
    # M = [[1, -1/2], [-1/2, 1]]: a / 2 = 1 / a
    assert bargain(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)).tolist() == pytest.approx(
        [2**0.5] * 2
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_residual_vanishes(seed: int) -> None:
    """Also for players of very different size; nearly parallel or opposed ones need the ridge that `shares` adds."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    rows = rows * torch.exp(3 * torch.randn(6, 1, generator=draw, dtype=torch.float64))
    if seed % 2:
        rows[1] = -rows[0] * 2 + 1e-3 * rows[2]
        rows[3] = rows[4] + 1e-4 * rows[5]
        assert shares(rows @ rows.T, 1e-6)[1] < 1e-8
        return
    alpha = bargain(rows @ rows.T)
    assert bool((alpha > 0).all())
    assert residual(rows @ rows.T, alpha) < 1e-8


def test_weights_do_not_depend_on_scale_or_order() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    weights, rest = shares(rows @ rows.T, 1e-9)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert rest < 1e-8
    assert torch.allclose(shares(100 * rows @ rows.T, 1e-9)[0], weights)
    order = [2, 0, 3, 1]
    assert torch.allclose(shares(rows[order] @ rows[order].T, 1e-9)[0], weights[order])


def test_edges() -> None:
    nobody, _ = shares(torch.zeros(3, 3, dtype=torch.float64), 1e-6)
    assert nobody.tolist() == pytest.approx([1 / 3] * 3)
    alone, _ = shares(torch.tensor([[5.0]], dtype=torch.float64), 1e-6)
    assert alone.tolist() == [1.0]
    opposed, _ = shares(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64), 1e-6)
    assert opposed.tolist() == pytest.approx([0.5, 0.5])


def test_a_round_moves_the_global_adapter_by_the_bargain(tmp_path: Path) -> None:
    """Redone from the clients' states: deltas against the common start, weights from their Gram matrix."""
    bench = Bench("nbs", tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"], rounds=1)
    folder = RunFolder.open(bench.run())
    (record,) = folder.rounds()
    setup = build(folder.config, bench.manager, bench.benchmark())
    start = setup.adapter.initial(setup.load("tiny-llama-s"), "global", 0)
    sent = [folder.store.get(record["states"][client]) for client in ("a", "b")]
    sent = [{key: value for key, value in state.items() if key in start} for state in sent]
    deltas = [{key: value - start[key] for key, value in state.items()} for state in sent]
    weights, _ = shares(gram(deltas), 1e-6)
    report = record["summary"]["report"]
    assert report["weights"]["a"] == pytest.approx({"a": float(weights[0]), "b": float(weights[1])})
    assert report["weights"]["c"] == {"c": 1.0}  # alone on its backbone
    assert max(report["residual"].values()) < 1e-8
    merged = folder.store.get(record["server"]["tensors"]["tiny-llama-s"])
    for key, value in merged.items():
        expected = start[key] + sum(float(w) * delta[key] for w, delta in zip(weights, deltas, strict=True))
        assert torch.allclose(value, expected, atol=1e-6), key
