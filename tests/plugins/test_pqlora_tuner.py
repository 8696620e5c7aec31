"""PQ-LoRA behaves as a peft method: placement, start, training, files, merging, several adapters."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_plugins.fedmosaic.equations import pq_forward
from pfl_plugins.pqlora.tuner import PQLinear, PQLoraConfig, orthonormal, pq_layers, register
from pfl_plugins.pqlora.tuner.config import peft_type

# peft asks transformers for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TARGETS = ["q_proj", "down_proj"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 6, bias=True)
        self.down_proj = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down_proj(torch.tanh(self.q_proj(x)))
        return out


class Toy(nn.Module):
    """Two blocks with a biased and an unbiased linear map each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x)
        return x


def fill(model: nn.Module, *address: str | int) -> None:
    """Every parameter that trains gets a value from the address."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=torch_rng(*address, name)).to(parameter.dtype)


def toy(dtype: torch.dtype = torch.float32) -> Toy:
    model = Toy()
    fill(model, "toy")
    return model.to(dtype).requires_grad_(False)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    fill(model, "llama")
    return model


def adapted(dtype: torch.dtype = torch.float32, **changes: object) -> PeftModel:
    """A toy with a PQ-LoRA of rank 2 in every linear map, P and Q away from zero."""
    model = get_peft_model(toy(dtype), PQLoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, **changes))
    fill(model, "adapter")
    return model


def x() -> Tensor:
    return torch.randn(5, 6, generator=torch_rng("x"))


# Placement -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [
        (16, (3, 7, 11, 15)),  # Llama-3.2-1B
        (28, (6, 13, 20, 27)),  # Llama-3.2-3B, Qwen2.5-1.5B
        (32, (7, 15, 23, 31)),  # Llama-3.1-8B
        (24, (5, 11, 17, 23)),  # Qwen2.5-0.5B
        (36, (8, 17, 26, 35)),  # Qwen2.5-3B
    ],
)
def test_placement_of_the_papers_backbones(num_layers: int, layers: tuple[int, ...]) -> None:
    assert pq_layers(num_layers, 4) == layers
    assert pq_layers(num_layers, 4, "alg2") == layers  # 4 divides all of them


def test_placement_rules_differ_where_blocks_do_not_divide_the_layers() -> None:
    # 30 layers, 4 blocks of floor(30 / 4) = 7, 2 left over. From 1: Eq. 6 gives 7 14 21 30, Alg. 2 gives 9 16 23 30.
    assert pq_layers(30, 4) == (6, 13, 20, 29)
    assert pq_layers(30, 4, "alg2") == (8, 15, 22, 29)
    assert pq_layers(5, 1) == (4,)
    assert pq_layers(3, 3) == (0, 1, 2)


def test_placement_refuses_what_cannot_be() -> None:
    with pytest.raises(UserError, match="5 blocks out of 4 layers"):
        pq_layers(4, 5)
    with pytest.raises(UserError, match="at least one block"):
        pq_layers(4, 0)
    with pytest.raises(UserError, match="Did you mean 'eq6'"):
        pq_layers(4, 2, "eq5")  # type: ignore[arg-type]


# Registration --------------------------------------------------------------------------------------------------------


def test_registration_is_idempotent_and_complete() -> None:
    register()
    assert peft_type() is PeftType.PQLORA is PeftType("PQLORA") is PeftType["PQLORA"]
    assert list(PeftType).count(PeftType.PQLORA) == 1
    assert pickle.loads(pickle.dumps(PeftType.PQLORA)) is PeftType.PQLORA
    assert len({*PeftType}) == len(PeftType.__members__)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"r": 0}, "rank r of at least 1"),
        ({"lora_alpha": 0}, "positive lora_alpha"),
        ({"bias": "lora_only"}, "must be 'none', 'all' or 'pqlora_only'"),
        ({"layers_pattern": "layers"}, "without layers_to_transform"),
    ],
)
def test_config_refuses(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PQLoraConfig(**wrong)


def test_a_rank_larger_than_a_side_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"r=7 is too large for 'layers\.0\.q_proj' \(6 -> 6\): choose r <= 6"):
        get_peft_model(toy(), PQLoraConfig(r=7, target_modules=TARGETS))


def test_only_plain_linear_modules_are_adapted() -> None:
    with pytest.raises(UserError, match="'layers' is a ModuleList"):
        get_peft_model(toy(), PQLoraConfig(r=2, target_modules=["layers"]))
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), toy(), "conventional")
    refused = pytest.raises(UserError, match=r"'layers\.0\.q_proj' is already adapted")
    with refused, pytest.warns(UserWarning, match="multiple adapters"):
        inject_adapter_in_model(PQLoraConfig(r=2, target_modules=["q_proj"]), model, "pq")


# Factors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(3, 8), (8, 3), (4, 4), (64, 300)])
def test_orthonormal(rows: int, cols: int) -> None:
    matrix = orthonormal(rows, cols, torch_rng(1, "m"))
    gram = matrix @ matrix.T if rows <= cols else matrix.T @ matrix
    assert matrix.shape == (rows, cols)
    assert (gram - torch.eye(min(rows, cols))).abs().max() < 1e-5
    assert torch.equal(matrix, orthonormal(rows, cols, torch_rng(1, "m")))
    assert not torch.equal(matrix, orthonormal(rows, cols, torch_rng(2, "m")))
    # It is *the* QR factor of the Gaussian draw: the triangular factor has a positive diagonal.
    tall = matrix if rows >= cols else matrix.T
    gaussian = torch.randn(tall.shape, generator=torch_rng(1, "m"), dtype=torch.float64)
    triangular = tall.double().T @ gaussian
    assert (triangular.diagonal() > 0).all()
    assert triangular.tril(-1).abs().max() < 1e-4


def test_factors_come_from_the_seed_and_the_path() -> None:
    layer = adapted(seed=3).get_submodule("base_model.model.layers.1.down_proj")
    assert torch.equal(layer.pqlora_A["default"], orthonormal(2, 6, torch_rng(3, "layers.1.down_proj", "A")))
    assert torch.equal(layer.pqlora_B["default"], orthonormal(6, 2, torch_rng(3, "layers.1.down_proj", "B")))
    other = adapted(seed=4).get_submodule("base_model.model.layers.1.down_proj")
    assert not torch.equal(layer.pqlora_A["default"], other.pqlora_A["default"])


def test_a_fresh_adapter_changes_nothing_and_p_and_q_get_gradient_at_once() -> None:
    model = get_peft_model(toy(), PQLoraConfig(r=2, target_modules=TARGETS))
    assert torch.equal(model(x()), toy()(x()))
    model(x()).square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 8  # P and Q in four modules
    assert all(".pqlora_P." in name or ".pqlora_Q." in name for name in trained)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


def test_forward_is_equation_5_with_scale_alpha_over_r() -> None:
    layer = adapted().get_submodule("base_model.model.layers.0.q_proj")
    assert isinstance(layer, PQLinear)
    assert layer.scaling == {"default": 3.0}  # 6 / 2
    base = layer.get_base_layer()
    a, b = layer.pqlora_A["default"], layer.pqlora_B["default"]
    p, q = layer.pqlora_P["default"], layer.pqlora_Q["default"]
    torch.testing.assert_close(layer(x()), pq_forward(x(), base.weight, base.bias, a, p, q, b, scale=3.0))


def test_training_moves_p_and_q_only() -> None:
    model = get_peft_model(toy(), PQLoraConfig(r=2, target_modules=TARGETS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x()).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".pqlora_P." in name or ".pqlora_Q." in name}


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"is_trainable": True}, {"low_cpu_mem_usage": True}])
def test_round_trip_through_a_folder_is_bit_exact(tmp_path: Path, options: dict[str, bool]) -> None:
    model = adapted(seed=5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(toy(), tmp_path, **options)
    assert torch.equal(loaded(x()), model(x()))
    assert loaded.peft_config["default"].seed == 5
    saved = {name for name, _ in model.named_parameters() if "pqlora" in name}
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == (saved if options.get("is_trainable") else set())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PQLORA"


def test_loaded_factors_win_over_the_seed(tmp_path: Path) -> None:
    model = adapted()
    layer = model.get_submodule("base_model.model.layers.0.q_proj")
    layer.pqlora_A["default"].copy_(orthonormal(2, 6, torch_rng("aligned")))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(toy(), tmp_path)
    assert torch.equal(
        loaded.get_submodule("base_model.model.layers.0.q_proj").pqlora_A["default"],
        orthonormal(2, 6, torch_rng("aligned")),
    )
    assert torch.equal(loaded(x()), model(x()))


def test_a_causal_language_model_of_transformers(tmp_path: Path) -> None:
    ids = torch.arange(12).unsqueeze(0)
    config = PQLoraConfig(
        r=4, target_modules=TARGETS, layers_to_transform=list(pq_layers(4, 2)), task_type="CAUSAL_LM", seed=1
    )
    model = get_peft_model(llama(), config)
    assert sum(isinstance(module, PQLinear) for module in model.modules()) == 4  # layers 1 and 3, two modules each
    plain = llama()(ids).logits
    assert torch.equal(model(ids).logits, plain)
    fill(model, "adapter")
    model.save_pretrained(tmp_path)
    assert not torch.allclose(model(ids).logits, plain)
    assert torch.equal(PeftModel.from_pretrained(llama(), tmp_path)(ids).logits, model(ids).logits)
    direct = llama()
    direct.load_adapter(tmp_path)
    assert torch.equal(direct(ids).logits, model(ids).logits)
    generated = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert generated.shape == (1, 14)


# Several adapters, switching off, copies -----------------------------------------------------------------------------


def test_second_adapter_and_disabling(tmp_path: Path) -> None:
    model = adapted()
    first = model(x())
    with model.disable_adapter():
        assert torch.equal(model(x()), toy()(x()))
    model.add_adapter("second", PQLoraConfig(r=3, target_modules=["q_proj"], seed=9))
    assert torch.equal(model(x()), first)  # added, not active
    model.set_adapter("second")
    assert torch.equal(model(x()), toy()(x()))  # P and Q of the second are zero
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith(".second") for name in trainable)
    fill(model, "second")
    second = model(x())
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(toy(), tmp_path / "second")
    assert torch.equal(alone(x()), second)
    model.set_adapter("default")
    assert torch.equal(model(x()), first)
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if name.endswith(".second")]
    assert torch.equal(copy.deepcopy(model)(x()), first)


def test_lives_beside_conventional_lora_on_other_modules() -> None:
    first = {"target_modules": TARGETS, "layers_to_transform": [0], "layers_pattern": "layers"}
    second = {**first, "layers_to_transform": [1]}
    model = inject_adapter_in_model(LoraConfig(r=2, init_lora_weights=False, **first), toy(), "lora")
    with_lora = model(x())
    with pytest.warns(UserWarning, match="multiple adapters"):
        model = inject_adapter_in_model(PQLoraConfig(r=2, **second), model, "pq")
    assert torch.equal(model(x()), with_lora)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sum(".lora_" in name for name in trained) == 4
    assert sum(".pqlora_" in name for name in trained) == 4
    fill(model, "both")
    assert not torch.allclose(model(x()), with_lora)


def test_a_model_without_weights_gets_adapters_without_weights() -> None:
    with torch.device("meta"):
        bare = Toy()
    model = get_peft_model(bare, PQLoraConfig(r=2, target_modules=TARGETS))
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])


# Precision and merging -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_base_with_full_precision_adapter(autocast: bool) -> None:
    model = get_peft_model(
        toy(torch.bfloat16), PQLoraConfig(r=2, target_modules=TARGETS), autocast_adapter_dtype=autocast
    )
    layer = model.get_submodule("base_model.model.layers.0.q_proj")
    assert {layer.pqlora_P["default"].dtype, layer.pqlora_A["default"].dtype} == {torch.float32}
    # The factors are the exact ones, not rounded through bfloat16.
    assert torch.equal(layer.pqlora_A["default"], orthonormal(2, 6, torch_rng(0, "layers.0.q_proj", "A")))
    out = model(x().bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.pqlora_P["default"].grad is not None


def test_double_precision_base_gets_a_double_precision_adapter() -> None:
    model = get_peft_model(toy(torch.float64), PQLoraConfig(r=2, target_modules=TARGETS))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unload_gives_a_plain_model_with_the_same_outputs(safe: bool) -> None:
    model = adapted(torch.float64)
    expected = model(x().double())
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(isinstance(module, PQLinear) for module in merged.modules())
    torch.testing.assert_close(merged(x().double()), expected, atol=1e-12, rtol=1e-12)
    # B Q needs a bias, also where the base has none.
    assert merged.layers[0].down_proj.bias is not None


def test_unmerging_restores_weights_and_the_missing_bias() -> None:
    model = adapted(torch.float64)
    expected = model(x().double())
    model.merge_adapter()
    layer = model.get_submodule("base_model.model.layers.0.down_proj")
    assert layer.base_layer.bias is not None
    torch.testing.assert_close(model(x().double()), expected, atol=1e-12, rtol=1e-12)
    model.unmerge_adapter()
    assert layer.base_layer.bias is None
    torch.testing.assert_close(model(x().double()), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        layer.base_layer.weight, toy(torch.float64).layers[0].down_proj.weight, atol=1e-14, rtol=0
    )
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_safe_merge_refuses_what_is_not_finite() -> None:
    model = adapted()
    model.get_submodule("base_model.model.layers.0.q_proj").pqlora_Q["default"].data[0] = float("nan")
    with pytest.raises(ValueError, match=r"'layers\.0\.q_proj' is not finite"):
        model.merge_and_unload(safe_merge=True)
