"""Backbones from folders, from the hub cache and at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pfl_model_zoo.cards import LINEARS, PACKAGE, find
from pfl_model_zoo.families.llava_original import RENAMED
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError

Random = Callable[[str], Backbone]
NAME = "tiny-llava-llama-s"


def made(name: str, **options: Any) -> Backbone:
    backbone = pfl_make_backbone(name, options)
    assert backbone is not None
    return backbone


def tensors(backbone: Backbone) -> Mapping[str, Tensor]:
    return dict(backbone.model.named_parameters())


@pytest.fixture
def folder(random_backbone: Random, tmp_path: Path) -> Path:
    """A backbone's folder as save_pretrained writes it."""
    target = tmp_path / "backbone"
    random_backbone(NAME).model.save_pretrained(target)  # type: ignore[operator]
    for path in (PACKAGE / find(NAME).tokenizer).glob("tokenizer*"):
        shutil.copy(path, target)
    return target


def test_what_the_core_needs_is_there(random_backbone: Random) -> None:
    for name in ("tiny-llava-llama-m", "tiny-llava-qwen-m", "tiny-llama-s"):
        backbone = random_backbone(name)
        assert len(backbone.blocks) == backbone.card.layers
        assert backbone.linears == LINEARS
        for block in backbone.blocks:
            assert all(isinstance(backbone.module(f"{block}.{path}"), torch.nn.Linear) for path in LINEARS)
        assert isinstance(backbone.module(backbone.head), torch.nn.Linear)
        assert "RMSNorm" in type(backbone.module(backbone.final_norm)).__name__
        assert backbone.last_linear == f"{backbone.blocks[-1]}.mlp.down_proj"
        assert not backbone.model.training
        assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_random_weights_come_from_their_seed_alone(random_backbone: Random) -> None:
    state = torch.random.get_rng_state()
    again, other = made(NAME, init=7), made(NAME, init=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in tensors(random_backbone(NAME)).items():
        assert torch.equal(tensors(again)[name], value), name
    assert again.digest == random_backbone(NAME).digest != other.digest


def test_a_folder_gives_back_what_was_saved(random_backbone: Random, folder: Path) -> None:
    backbone = made(NAME, path=folder)
    for name, value in tensors(random_backbone(NAME)).items():
        assert torch.equal(tensors(backbone)[name], value), name


def test_half_precision_files_are_read_as_float32(folder: Path) -> None:
    made(NAME, path=folder).model.half().save_pretrained(folder)  # type: ignore[operator]
    whole = tensors(made(NAME, path=folder))
    half = tensors(made(NAME, path=folder, dtype="float16"))
    assert {value.dtype for value in whole.values()} == {torch.float32}
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert all(torch.equal(half[name].float(), value) for name, value in whole.items())


def test_digest_names_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    before = made(NAME, path=folder).digest
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert made(NAME, path=copy).digest == before
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (copy / "config.json").write_text(json.dumps(config))
    assert made(NAME, path=copy).digest != before


def test_attention_kinds_agree(folder: Path) -> None:
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        eager, sdpa = (
            made(NAME, path=folder, attention=kind).model(input_ids=ids).logits for kind in ("eager", "sdpa")
        )
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=1e-4)


def pickled(folder: Path) -> Path:
    """Turns a folder's weights into a pickled file."""
    torch.save(dict(made(NAME, path=folder).model.state_dict()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_unless_asked_for(random_backbone: Random, folder: Path) -> None:
    pickled(folder)
    with pytest.raises(UserError, match=r"pytorch_model\.bin\) are pickled.*allow_pickle"):
        made(NAME, path=folder)
    name, value = next(iter(tensors(random_backbone(NAME)).items()))
    assert torch.equal(tensors(made(NAME, path=folder, allow_pickle=True))[name], value)


def test_missing_folders_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere for backbone 'tiny-llava-llama-s' does not exist"):
        made(NAME, path=tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights; it needs model\.safetensors"):
        made(NAME, path=folder)


def test_a_backbone_that_is_not_in_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'llama-3.2-1b' \(meta-llama/Llama-3.2-1B\) is not in the local hub cache"):
        made("llama-3.2-1b")


def test_a_folder_of_another_size_is_noticed(folder: Path) -> None:
    with pytest.raises(UserError, match="holds a model with 4 layers of width 96, but 'tiny-llava-llama-m' has 5 of"):
        made("tiny-llava-llama-m", path=folder)


def test_incomplete_weights_are_noticed(folder: Path) -> None:
    kept = {key: value for key, value in made(NAME, path=folder).model.state_dict().items() if "layers.3." not in key}
    kept.pop("lm_head.weight")
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack [0-9]+ tensors, for example 'model.language_model.layers.3"):
        made(NAME, path=folder)


def test_damaged_weights_are_one_sentence(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="weights of backbone 'tiny-llava-llama-s' in .* cannot be read"):
        made(NAME, path=folder)


def test_an_unusable_device_is_one_sentence() -> None:
    with pytest.raises(UserError, match="'gpu' is no device"):
        made(NAME, init=0, device="gpu")


def original(folder: Path, *, tower: bool) -> Path:
    """Rewrites a folder into the layout of the original LLaVA code; the tower goes to its own folder unless kept."""
    backbone = made(NAME, path=folder)
    raw = json.loads((folder / "config.json").read_text())
    config = {**raw["text_config"], "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"}
    config |= {"mm_vision_select_layer": -1, "mm_vision_tower": "openai/none", "tie_word_embeddings": True}
    if tower:
        config["vision_config"] = raw["vision_config"]
    weights: dict[str, Tensor] = {}
    for key, value in backbone.model.state_dict().items():
        name = next((old + key[len(new) :] for old, new in RENAMED if key.startswith(new)), key)
        if tower or "vision_tower" not in key:
            weights[name] = value.clone()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    backbone.module("model.vision_tower").save_pretrained(folder / "tower")  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("tower", [True, False])
def test_the_original_layout_gives_the_same_model(random_backbone: Random, folder: Path, tower: bool) -> None:
    original(folder, tower=tower)
    backbone = made(NAME, path=folder, **({} if tower else {"vision_path": folder / "tower"}))
    for name, value in tensors(random_backbone(NAME)).items():
        assert torch.equal(tensors(backbone)[name], value), name
    assert backbone.module("model.vision_tower").config.image_size == 32  # type: ignore[union-attr]


def test_a_tower_that_is_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    original(folder, tower=False)
    with pytest.raises(UserError, match=r"vision tower' \(openai/none\) is not in the local hub cache"):
        made(NAME, path=folder)
    with pytest.raises(UserError, match="vision tower's folder .* does not exist"):
        made(NAME, path=folder, vision_path=tmp_path / "none")
