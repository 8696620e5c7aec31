"""Fisher merging per client: the equation by hand, dense gradients against those of the factors, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import build
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import samples
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.view import BatchView
from pfl_plugins.fishermerge.config import Config
from pfl_plugins.fishermerge.equations import merged
from pfl_plugins.fishermerge.personalizer import FisherMerge

BACKBONES = ("tiny-llama-s", "tiny-llama-m")


def test_the_mean_by_hand() -> None:
    first, second = {"a": torch.tensor([0.0, 0.0, 2.0])}, {"a": torch.tensor([4.0, 4.0, 4.0])}
    known = ({"a": torch.tensor([3.0, 1.0, 0.0])}, {"a": torch.tensor([1.0, 1.0, 0.0])})
    found = merged(first, second, known, 0.5, normalize="none")["a"]
    assert found.tolist() == pytest.approx([1.0, 2.0, 3.0])  # 4 * 1/4; the middle; nothing known: the plain mean
    assert merged(first, second, known, 0.25, normalize="none")["a"].tolist() == pytest.approx([0.4, 1.0, 2.5])
    # Ten times the loss scale of one model is a hundred times its information, which its norm takes away.
    loud = (known[0], {"a": 100 * known[1]["a"]})
    plain = merged(first, second, known, 0.5)["a"]
    assert torch.allclose(merged(first, second, loud, 0.5)["a"], plain)


def test_nothing_known_at_all_is_the_weighted_mean() -> None:
    nothing = {"a": torch.zeros(2)}
    found = merged({"a": torch.zeros(2)}, {"a": torch.ones(2)}, (nothing, nothing), 0.25)["a"]
    assert found.tolist() == pytest.approx([0.25, 0.25])


def test_dense_gradients_are_those_behind_the_factors(tmp_path: Path) -> None:
    """dL/dA = s B^T G and dL/dB = s G A^T, G the gradient of the dense weight."""
    bench = Bench("fishermerge", tmp_path, BACKBONES, ["backbone_options.init=0"])
    setup = build(bench.config(), bench.manager, bench.benchmark())
    host = Host(setup.load("tiny-llama-s"), setup.adapter, (Slot("local"),))
    draw = torch.Generator().manual_seed(0)
    host.load({key: 0.1 * torch.randn(value.shape, generator=draw) for key, value in host.params.items()})
    view = BatchView(lambda _: host, "tiny-llama-s", samples("x", 1), step=0, rng=lambda *parts: draw)
    with host.dense():
        live = host.select(Keys("local/*", "base/*/W"))
        loss = answer_loss(view.forward({"local": 1.0}, train=False)).sum()
        found = dict(zip(live, torch.autograd.grad(loss, list(live.values())), strict=True))
    assert not any(key.startswith("base/") for key in host.params)
    scale = float(setup.adapter.signature()["scale"])
    for key, gradient in found.items():
        slot, site, part = key.split("/")
        if slot == "base":
            continue
        dense = found[f"base/{site}/W"]
        a, b = host.params[f"local/{site}/A"], host.params[f"local/{site}/B"]
        expected = scale * (b.T @ dense if part == "A" else dense @ a.T)
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=1e-3), key


@pytest.mark.parametrize("space", ["lora", "full"])
def test_a_run_evaluates_the_merged_model(space: str, tmp_path: Path) -> None:
    bench = Bench("fishermerge", tmp_path, BACKBONES, ["backbone_options.init=0"], rounds=1)
    out = bench.run(clients=1, **{"personalizer.space": space, "personalizer.samples": 2})
    folder = RunFolder.open(out)
    (record,) = folder.rounds()
    state = folder.store.get(record["evaluated"]["a"])
    found = FisherMerge(Config(space=space)).params(state, None)  # type: ignore[arg-type]
    assert record["clients"]["a"]["scores"]
    if space == "lora":
        assert set(found) == {key for key in state if key.startswith("local/")}
        for key, value in found.items():
            pair = torch.stack([state[key], state["global" + key[5:]]])
            assert bool((pair.amin(0) - 1e-6 <= value).all()), key
            assert bool((value <= pair.amax(0) + 1e-6).all()), key
    else:
        assert all(key.startswith("base/") and key.endswith("/W") for key in found)
        assert any(bool(value.any()) for value in found.values())


def test_large_backbones_refuse_dense_information(tmp_path: Path) -> None:
    bench = Bench("fishermerge", tmp_path, BACKBONES, ["backbone_options.init=0"])
    changes = {"personalizer.space": "full", "personalizer.largest": 10}
    with pytest.raises(UserError, match="choose personalizer.space=lora"):
        build(bench.config(**changes), bench.manager, bench.benchmark())
