"""Backbones in 4 and 8 bits, and layers over linear maps whose weight is packed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_model_zoo.families.quantised import stored
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.host import Host, linear_values
from pfl_platform.adapters.surfaces import AdapterType, Keys, Slot
from pfl_platform.backbones import Backbone, dense_weight, shape_of
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.federation.own_adapters import twin
from pfl_platform.ledger.shapes import Shapes
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_plugins.lora.adapter import Lora
from pfl_plugins.lora.config import Config as LoraOptions
from pfl_plugins.modules.adapter import Modules
from pfl_plugins.modules.config import Config as ModulesOptions
from pfl_plugins.pqlora.adapter import PQLora
from pfl_plugins.pqlora.config import Config as PQOptions

SAMPLES = [Sample(str(k), (Turn(f"Say {k}.", f"{k} {k}"),)) for k in range(4)]
ADAPTERS = (Lora(LoraOptions(r=4)), PQLora(PQOptions(r=4, blocks=2)))


class Packed(nn.Linear):
    """A linear map whose weight is kept as whole numbers, two in a row, and a scale."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features, old.bias is not None, device="meta")
        self.scale = old.weight.detach().abs().max() / 7
        nibbles = (old.weight.detach() / self.scale).round().to(torch.int64).flatten() + 7
        self.weight = nn.Parameter((nibbles[::2] * 16 + nibbles[1::2]).to(torch.uint8)[:, None], requires_grad=False)
        self.bias = old.bias

    def dense(self) -> Tensor:
        packed = self.weight.flatten().long()
        nibbles = torch.stack([packed // 16, packed % 16], dim=1).flatten() - 7
        return (nibbles * self.scale).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense(), self.bias)


def backbone(name: str = "tiny-llama-s", **options: Any) -> Backbone:
    found: Backbone | None = pfl_make_backbone(name, options)
    assert found is not None
    return found


def packed(*, plain: bool = False) -> Backbone:
    """The tiny backbone with packed maps in its blocks; plain: with the values that these stand for."""
    found = backbone()
    for block in found.blocks:
        for linear in found.linears_in(block):
            parent, _, name = f"{block}.{linear}".rpartition(".")
            new = Packed(found.module(f"{block}.{linear}"))  # type: ignore[arg-type]
            if plain:
                found.module(f"{block}.{linear}").weight.data = new.dense()  # type: ignore[union-attr]
            else:
                setattr(found.module(parent), name, new)
    return found


def trained(found: Backbone, adapter: AdapterType, steps: int = 6) -> tuple[list[float], dict[str, Tensor], Tensor]:
    """Losses, the adapter after, and logits under it."""
    host = Host(found, adapter, (Slot("local"),))
    host.load({**adapter.frozen(found, 0), **adapter.initial(found, "local", 0)})
    step = Step(adapter.trainable("local"), answers_under({"local": 1.0}), Optim(5e-3))
    actor = Actor("a", "b", lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())
    done = train(actor, (Phase("local", (step,), steps, Epochs(SAMPLES, 4, 0, "all")),))
    with torch.no_grad(), host.merging({"local": 1.0}), host.mixing({"local": 1.0}):
        logits = host.run(host.encode(SAMPLES).inputs, use_cache=False).logits
    return done.losses["local"], host.read(sorted(Keys("local/*").of(host.params))), logits


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "pqlora"])
def test_adapters_over_packed_maps_train_as_over_what_these_stand_for(adapter: AdapterType) -> None:
    ours, theirs = (trained(found, adapter) for found in (packed(), packed(plain=True)))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[0][-1] < ours[0][0]
    for key, value in theirs[1].items():
        torch.testing.assert_close(ours[1][key], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-4)


def test_sizes_and_weights_of_packed_maps() -> None:
    found, plain = packed(), packed(plain=True)
    assert linear_values(found) == linear_values(plain)
    path = f"{found.blocks[0]}.mlp.down_proj"
    assert shape_of(found.module(path)) == tuple(plain.module(path).weight.shape)  # type: ignore[union-attr]
    torch.testing.assert_close(dense_weight(found.module(path)), plain.module(path).weight)
    assert dense_weight(plain.module(path)) is plain.module(path).weight
    with pytest.raises(UserError, match="is held in few bits and cannot be trained; load all of it"):
        Modules(ModulesOptions(modules=("model.layers.1",))).check(found)


def test_plans_know_what_fewer_bits_weigh() -> None:
    shapes = Shapes(PluginManager())
    whole, four, eight = (shapes.of(f"llama-3.2-1b{form}") for form in ("", "@4bit", "@8bit"))
    maps = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert (whole.few, four.few) == (0, maps)
    assert whole.weights(2) == 2 * 1_235_814_400
    assert four.weights(2) == pytest.approx(2 * (1_235_814_400 - maps) + maps * (0.5 + 1 / 64 + 1 / 4096))
    rows = 16 * (2 * 2048 + 2 * 512 + 2 * 8192 + 2048)
    assert eight.weights(2) == pytest.approx(2 * (1_235_814_400 - maps) + maps + 4 * rows)
    assert shapes.loaded("llama-3.2-1b", {"load": "4bit"}).weights(2) == four.weights(2)
    assert four.name == "llama-3.2-1b@4bit"


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"has to be installed: pip install 'pfl-platform\[quantised\]'"):
        backbone(load="4bit")
    with pytest.raises(UserError, match="cannot be loaded in 8bit too; say it once"):
        backbone("tiny-llama-s@4bit", load="8bit")
    monkeypatch.undo()
    with pytest.raises(UserError, match="reads 96 values, and in 4 bits that must be a multiple of 64; load it in 8"):
        backbone("tiny-llama-s@4bit", device="meta")


@pytest.mark.parametrize(("form", "most"), [("4bit", 0.2), ("8bit", 0.01)])
def test_a_backbone_in_fewer_bits(form: str, most: float) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes (the extra 'quantised') is not installed")
    name = "tiny-llama-m"  # all of whose maps read multiples of 64
    plain, found = backbone(name), backbone(f"{name}@{form}")
    assert found.name == f"{name}@{form}"
    assert found.digest != plain.digest
    assert len(found.few) == 42
    held = 0
    for path in found.few:
        one, other = dense_weight(found.module(path)), dense_weight(plain.module(path))
        assert float((one - other).abs().max()) <= most * float(other.abs().max())
        assert not torch.equal(one, other)
        held += found.module(path).weight.nbytes  # type: ignore[union-attr, operator]
    values = sum(rows * columns for rows, columns in (shape_of(plain.module(path)) for path in found.few))
    assert held == values // (2 if form == "4bit" else 1)
    assert found.few_bytes == sum(stored(form, *shape_of(plain.module(path))) for path in found.few)
    inputs = found.codec.encode(SAMPLES).inputs
    with torch.no_grad():
        logits = found.model(**inputs, use_cache=False).logits
        assert torch.equal(twin(found, "another").model(**inputs, use_cache=False).logits, logits)
    losses, _, _ = trained(found, ADAPTERS[0], steps=10)
    assert losses[-1] < losses[0]
    again, _, _ = trained(backbone(name, load=form), ADAPTERS[0], steps=10)
    assert again == losses
