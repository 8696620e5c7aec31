"""LoRA and PQ-LoRA as adapter types: the mixture against peft and against the paper's formula, keys, export."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from pfl_platform.adapters.export import save_personal
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import AdapterType, Slot, shared
from pfl_platform.backbones import Backbone, Card
from pfl_platform.errors import UserError
from pfl_plugins.fedmosaic.equations import mix, pq_forward
from pfl_plugins.fedmosaic.gate import InputGate, ScalarGate
from pfl_plugins.lora.adapter import Lora
from pfl_plugins.lora.config import Config as LoraOptions
from pfl_plugins.pqlora.adapter import PQLora
from pfl_plugins.pqlora.config import Config as PQOptions

SLOTS = (Slot("local"), Slot("global"))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Toy(nn.Module):
    """Four blocks of two linear maps; stands for a decoder."""

    config = SimpleNamespace(model_type="toy", to_dict=dict, get=lambda *_: None)

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def backbone(width: int = 8, depth: int = 4) -> Backbone:
    generator = torch.Generator().manual_seed(7)
    model = Toy(width, depth)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.requires_grad_(False)
    card = Card(f"toy-{width}", "text", depth, width, sum(p.numel() for p in model.parameters()))
    blocks = tuple(f"layers.{k}" for k in range(depth))
    return Backbone(card, model, None, blocks, ("up", "down"), "", "", "", card.name)  # type: ignore[arg-type]


def filled(host: Host) -> dict[str, torch.Tensor]:
    """Random values in every live tensor, which are returned."""
    generator = torch.Generator().manual_seed(1)
    values = {key: 0.4 * torch.randn(value.shape, generator=generator) for key, value in host.params.items()}
    host.load(values)
    return values


def batch(width: int = 8) -> torch.Tensor:
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(2))


def test_one_lora_slot_is_what_peft_computes() -> None:
    host = Host(backbone(), Lora(LoraOptions(r=2, scale=1.5)), (Slot("local"),))
    values = filled(host)
    plain = backbone().model
    peft_config = LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"])
    reference = get_peft_model(plain, peft_config)  # type: ignore[arg-type]
    for layer in host.layers.values():
        tuner = plain.get_submodule(layer.site.path)
        tuner.lora_A["default"].weight.data = values[f"local/{layer.site.name}/A"]  # type: ignore[index, union-attr]
        tuner.lora_B["default"].weight.data = values[f"local/{layer.site.name}/B"]  # type: ignore[index, union-attr]
    with torch.no_grad(), host.mixing({"local": 1.0}):
        found = host.backbone.model(batch())
    torch.testing.assert_close(found, reference.base_model.model(batch()), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_and_an_empty_mix_leave_the_backbone_alone() -> None:
    expected = backbone().model(batch())
    for adapter in (Lora(LoraOptions(r=2)), PQLora(PQOptions(r=2))):
        toy = backbone()
        host = Host(toy, adapter, SLOTS, {"gate": ScalarGate})
        host.load({**adapter.initial(toy, "local", 0), **adapter.initial(toy, "global", 0), **adapter.frozen(toy, 0)})
        for chosen in ({"local": 1.0}, {"local": 0.5, "global": 0.5}, "gate"):
            with torch.no_grad(), host.mixing(chosen):  # type: ignore[arg-type]
                torch.testing.assert_close(host.backbone.model(batch()), expected)
        filled(host)
        with torch.no_grad(), host.mixing({}):
            assert torch.equal(host.backbone.model(batch()), expected)


@pytest.mark.parametrize("weights", [(0.25, 0.75), (torch.tensor(0.25), torch.tensor(0.75))])
def test_a_pq_site_computes_equations_5_and_7(weights: tuple[float, float]) -> None:
    host = Host(backbone(), PQLora(PQOptions(r=2, scale=2.0)), SLOTS)
    values = filled(host)
    layer = host.layers["block1.up"]
    x = batch()
    outputs = {}
    for slot in ("local", "global"):
        p, q = values[f"{slot}/block1.up/P"], values[f"{slot}/block1.up/Q"]
        a, b = values["frozen/block1.up/A"], values["frozen/block1.up/B"]
        zero = torch.zeros_like(layer.base.weight)  # type: ignore[arg-type]
        outputs[slot] = pq_forward(x, zero, None, a, p, q, b, scale=2.0)
    beta = torch.logit(torch.tensor(0.75)).item()
    expected = mix(x @ layer.base.weight.T, outputs["local"], outputs["global"], beta)  # type: ignore[operator, union-attr]
    with torch.no_grad(), host.mixing({"local": weights[0], "global": weights[1]}):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", [Lora(LoraOptions(r=2)), PQLora(PQOptions(r=2))])
def test_row_weights_mix_each_row_by_itself(adapter: AdapterType) -> None:
    host = Host(backbone(), adapter, SLOTS)
    filled(host)
    rows = torch.tensor([0.0, 1.0, 0.3])
    x = batch()
    with torch.no_grad():
        with host.mixing({"local": rows, "global": 1 - rows}):
            together = host.backbone.model(x)
        for row, weight in enumerate(rows.tolist()):
            with host.mixing({"local": weight, "global": 1 - weight}):
                torch.testing.assert_close(together[row], host.backbone.model(x)[row], rtol=1e-4, atol=1e-4)


def test_pq_sites_mean_the_same_in_backbones_of_other_width_and_depth() -> None:
    adapter = PQLora(PQOptions(r=2, blocks=4))
    names = []
    for toy in (backbone(8, 4), backbone(12, 6)):
        shapes = {key: value.shape for key, value in adapter.initial(toy, "local", 0).items()}
        names.append({key: shape for key, shape in shapes.items() if key in shared("local", "all")})
    assert names[0] == names[1]
    assert {key.rsplit("/", 1)[1] for key in names[0]} == {"P", "Q"}
    assert [site.block for site in adapter.pq_sites(backbone(12, 6)) if site.name.endswith(".up")] == [0, 1, 2, 5]


def test_frozen_factors_are_orthonormal_and_differ_between_sites() -> None:
    toy = backbone()
    frozen = PQLora(PQOptions(r=3)).frozen(toy, 0)
    for key, value in frozen.items():
        gram = value @ value.T if key.endswith("/A") else value.T @ value
        torch.testing.assert_close(gram, torch.eye(3), atol=1e-5, rtol=0)
    assert not torch.equal(frozen["frozen/block0.up/A"], frozen["frozen/block1.up/A"])


def test_gradients_reach_the_trained_slot_and_the_gate_only() -> None:
    adapter = PQLora(PQOptions(r=2, blocks=2))
    host = Host(backbone(), adapter, SLOTS, {"gate": ScalarGate})
    filled(host)
    chosen = host.select(type(shared("local", "all"))(*adapter.trainable("local").patterns, "gate/*"))
    with host.mixing("gate"):
        host.backbone.model(batch()).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in chosen.values())
    others = [value for key, value in host.params.items() if key not in chosen]
    assert others
    assert all(value.grad is None for value in others)
    assert all(parameter.grad is None for name, parameter in host.backbone.model.named_parameters() if "base" in name)


def test_the_input_gate_ignores_padding_and_draws_noise_only_in_training() -> None:
    host = Host(backbone(), Lora(LoraOptions(r=2)), SLOTS, {"gate": InputGate})
    filled(host)
    layer, x = host.layers["layer0.up"], batch()
    mask = torch.tensor([[1, 1, 0, 0, 0]] * 3)
    gate = layer.mixes["gate"]
    short = gate(x[:, :2], None, None)["global"]
    torch.testing.assert_close(gate(x, mask, None)["global"], short)
    noisy = gate(x, mask, torch.Generator().manual_seed(0))["global"]
    assert not torch.allclose(noisy, short)
    assert gate.static() is None


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # peft: such an adapter cannot be merged
@pytest.mark.parametrize("adapter", [Lora(LoraOptions(r=2)), PQLora(PQOptions(r=2, blocks=2))])
def test_a_saved_personal_adapter_is_the_mixture_in_plain_peft(adapter: AdapterType, tmp_path: Path) -> None:
    host = Host(backbone(), adapter, SLOTS, {"gate": ScalarGate})
    filled(host)
    assert save_personal(host, "gate", tmp_path)
    with torch.no_grad(), host.mixing("gate"):
        expected = host.backbone.model(batch())
    loaded = PeftModel.from_pretrained(copy.deepcopy(backbone().model), str(tmp_path))
    torch.testing.assert_close(loaded.base_model.model(batch()), expected, rtol=1e-4, atol=1e-4)


def test_a_mix_that_depends_on_the_input_is_not_saved(tmp_path: Path) -> None:
    host = Host(backbone(), Lora(LoraOptions(r=2)), SLOTS, {"gate": InputGate})
    assert not save_personal(host, "gate", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_rank_larger_than_a_site_is_refused() -> None:
    for adapter in (Lora(LoraOptions(r=9)), PQLora(PQOptions(r=9))):
        with pytest.raises(UserError, match=r"Rank 9 is larger than layers\.0"):
            Host(backbone(), adapter, SLOTS)


def test_dropout_is_addressed_and_off_in_evaluation() -> None:
    host = Host(backbone(), Lora(LoraOptions(r=2, dropout=0.5)), (Slot("local"),))
    filled(host)

    def run(seed: int | None) -> torch.Tensor:
        rng = None if seed is None else (lambda site: torch.Generator().manual_seed(seed + len(site)))
        with torch.no_grad(), host.mixing({"local": 1.0}, None, rng):
            result: torch.Tensor = host.backbone.model(batch())
        return result

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(50))
    assert torch.equal(run(None), run(None))
