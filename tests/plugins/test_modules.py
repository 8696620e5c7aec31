"""Whole modules as an adapter: what a pass computes, what trains, what is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.export import save_personal
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_plugins.modules.adapter import Modules
from pfl_plugins.modules.config import Config

SAMPLES = [Sample(str(k), (Turn(f"Say {k}.", f"{k} {k}"),)) for k in range(4)]
HEAD = "local/layer.model.embed_tokens/weight"


def backbone(**options: object) -> Backbone:
    found: Backbone | None = pfl_make_backbone("tiny-llama-s", {"init": 3, **options})
    assert found is not None
    return found


def logits(found: Backbone) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = found.model(**found.codec.encode(SAMPLES).inputs, use_cache=False).logits
    return result


def moved(state: Mapping[str, torch.Tensor], deviation: float) -> dict[str, torch.Tensor]:
    """Params and noise."""
    return {
        key: value + deviation * torch.randn(value.shape, generator=torch_rng(1, key)) for key, value in state.items()
    }


def host_of(*modules: str, slots: tuple[str, ...] = ("local",), **options: object) -> Host:
    config = Config.model_validate({"modules": modules, **options})
    return Host(backbone(), Modules(config), tuple(Slot(name) for name in slots))


def test_a_pass_is_one_through_a_model_with_these_weights() -> None:
    host = host_of("model.norm", "model.layers.1", "model.embed_tokens")
    start = Modules(Config(modules=("model.norm", "model.layers.1", "model.embed_tokens"))).initial(
        backbone(), "local", 0
    )
    assert set(start) == set(host.params), "the tied head has no params of its own"
    assert HEAD in start
    assert sum(value.numel() for value in start.values()) == 96 + 2048 * 96 + sum(
        value.numel() for value in backbone().module("model.layers.1").parameters()
    )
    bare = logits(backbone())
    with host.mixing({"local": 1.0}):
        assert torch.equal(logits(host.backbone), bare)
    changed = {
        key: value + 0.02 * torch.randn(value.shape, generator=torch_rng(1, key)) for key, value in start.items()
    }
    host.load(changed)
    plain = backbone()
    with torch.no_grad():
        for key, value in changed.items():
            _, site, name = key.split("/")
            plain.model.get_parameter(f"{site.removeprefix('layer.')}.{name}").copy_(value)
    expected = logits(plain)  # the head of this model is its embedding: both were changed
    with host.mixing({"local": 1.0}):
        assert torch.equal(logits(host.backbone), expected)
    assert not torch.allclose(expected, bare, atol=0.1)
    with host.mixing({}):
        assert torch.equal(logits(host.backbone), bare)
    assert torch.equal(logits(host.backbone), bare)


def test_two_slots_are_a_mean_of_weights() -> None:
    host = host_of("lm_head", "model.norm", slots=("local", "global"))
    first = Modules(Config(modules=("lm_head", "model.norm")))
    state = {**first.initial(backbone(), "local", 0), **first.initial(backbone(), "global", 0)}
    assert HEAD in state, "who names the head trains the embedding, which is the same"
    state["local/layer.model.norm/weight"] = torch.full((96,), 3.0)
    state["global/layer.model.norm/weight"] = torch.full((96,), 2.0)
    host.load(state)
    plain = backbone()
    with torch.no_grad():
        plain.model.get_parameter("model.norm.weight").fill_(1.0 + 0.25 * 2.0 + 0.5 * 1.0)
    with host.mixing({"local": 0.25, "global": 0.5}):
        torch.testing.assert_close(logits(host.backbone), logits(plain))
    with host.mixing({"local": torch.ones(4)}), pytest.raises(UserError, match="mixes slots by plain numbers"):
        logits(host.backbone)
    with host.merging({"local": 1.0}), host.mixing({"local": 1.0}):
        assert not torch.equal(logits(host.backbone), logits(backbone())), "there is nothing to merge, and all to apply"


def test_training_changes_what_was_named_and_half_precision_has_a_master() -> None:
    config = Config(modules=("model.layers.2.mlp", "model.embed_tokens"))
    found = backbone(dtype="bfloat16")
    before = copy.deepcopy(dict(found.model.named_parameters()))
    host = Host(found, Modules(config), (Slot("local"),))
    host.load(Modules(config).initial(found, "local", 0))
    assert {value.dtype for value in host.params.values()} == {torch.float32}
    start = host.read(sorted(host.params))
    step = Step(Modules(config).trainable("local"), answers_under({"local": 1.0}), Optim(1e-4))
    actor = Actor("a", "b", lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())
    done = train(actor, (Phase("local", (step,), 12, Epochs(SAMPLES, 4, 0, "all")),))
    losses = done.losses["local"]
    assert losses[-1] < losses[0] - 0.02
    after = host.read(sorted(host.params))
    # Steps this small vanish in bfloat16, whose neighbours of 0.1 are 5e-4 apart; in the master copy they add up.
    assert all(not torch.equal(after[key], start[key]) for key in start)
    for name, value in found.model.named_parameters():
        if ".base." in name or not any(part in name for part in (".slots.", ".base")):
            assert torch.equal(value, before[name.replace(".base", "")]), name


def test_plain_peft_loads_what_is_saved(tmp_path: Path) -> None:
    host = host_of("model.layers.0.mlp", "lm_head", lora={"r": 2, "targets": ["q_proj"]})
    adapter = Modules(
        Config.model_validate({"modules": ["model.layers.0.mlp", "lm_head"], "lora": {"r": 2, "targets": ["q_proj"]}})
    )
    assert {name for name in host.layers if name.startswith("layer1.")} == {"layer1.self_attn.q_proj"}
    assert sum(adapter.sizes(backbone()).values()) == sum(value.numel() for value in host.params.values())
    state = adapter.initial(backbone(), "local", 0)
    assert set(state) == set(host.params)
    host.load(
        {key: value + 0.03 * torch.randn(value.shape, generator=torch_rng(2, key)) for key, value in state.items()}
    )
    with host.mixing({"local": 1.0}):
        expected = logits(host.backbone)
    assert save_personal(host, {"local": 1.0}, tmp_path / "adapter")
    plain = backbone()
    plain.model.config.tie_word_embeddings = False  # both were saved, and peft is to take both
    loaded = PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found = loaded(**plain.codec.encode(SAMPLES).inputs, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "names no module; set adapter.modules"),
        ({"modules": ["model.norms"]}, r"No module of tiny-llama-s is 'model\.norms'.*Did you mean 'model\.norm'"),
        ({"modules": ["model.layers"], "lora": {}}, "is left for LoRA beside whole modules"),
        ({"modules": ["lm_head"], "lora": {"r": 500}}, "Rank 500 is larger"),
    ],
)
def test_what_cannot_be_trained(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Modules(Config.model_validate(options)).check(backbone())
