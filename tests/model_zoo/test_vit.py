"""Vision transformers with a classifier: rows, adapters, heads, and files in the former and the present layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from pfl_model_zoo.cards import VIT_LINEARS, all_cards
from pfl_model_zoo.families.encoder import MASKED
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.backbones import IGNORE, Backbone, OneStepCodec
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_plugins.lora.plugin import pfl_make_adapter as make_lora
from pfl_plugins.pqlora.plugin import pfl_make_adapter as make_pqlora

Random = Callable[[str], Backbone]
NAME = "tiny-vit"
KINDS = ("cat", "dog", "fish")


def made(**options: Any) -> Backbone:
    backbone = pfl_make_backbone(options.pop("name", NAME), options)
    assert backbone is not None
    return backbone


@pytest.fixture
def vit(random_backbone: Random) -> Backbone:
    return random_backbone(NAME)


@pytest.fixture
def shown(ask: Callable[..., Sample]) -> Callable[..., Sample]:
    """A sample with one picture, to be called one of three kinds."""

    def make(answer: str = "dog", pictures: int = 1, options: tuple[str, ...] = KINDS) -> Sample:
        plain = ask("What is it?", answer, pictures)
        return Sample(plain.id, (Turn("What is it?", answer),), plain.pictures, options)

    return make


def test_what_the_core_needs_is_there(vit: Backbone) -> None:
    assert isinstance(vit.codec, OneStepCodec)
    assert vit.card.modality == "vision"
    assert len(vit.blocks) == vit.card.layers
    for block in vit.blocks:
        assert vit.linears_in(block) == vit.linears == VIT_LINEARS
    for path in (vit.head, vit.last_linear):
        assert isinstance(vit.module(path), torch.nn.Linear)
    assert isinstance(vit.module(vit.final_norm), torch.nn.LayerNorm)
    assert vit.task_head == ("classifier",)
    assert not vit.model.training
    assert vit.codec.decode([1, 2]) == ""


def test_a_row_is_a_picture_and_a_class(vit: Backbone, shown: Callable[..., Sample]) -> None:
    encoded = vit.codec.encode([shown("fish"), shown("cat", options=("dog", "cat"))])
    assert encoded.labels.tolist() == [[IGNORE, 2], [IGNORE, 1]]
    assert set(encoded.inputs) == {"pixel_values", "attention_mask", "choices"}
    assert encoded.inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert encoded.inputs["attention_mask"].shape == (2, 17)  # 16 patches and the class token
    assert encoded.tokens == 34
    assert encoded.inputs["choices"].tolist() == [3, 2]
    assert all(span == (-1, -1) for row in encoded.spans for span in row)
    pixel = encoded.inputs["pixel_values"][0, :, 0, 0]
    torch.testing.assert_close(pixel, 2 * torch.tensor([0.0, 20.0, 40.0]) / 255 - 1)  # ViT's mean and deviation


def test_logits_are_those_of_the_plain_model(vit: Backbone, shown: Callable[..., Sample]) -> None:
    encoded = vit.codec.encode([shown()])
    with torch.no_grad():
        logits = vit.model(**encoded.inputs, use_cache=False).logits
        plain = ViTForImageClassification.forward(vit.model, pixel_values=encoded.inputs["pixel_values"]).logits
    assert logits.shape == (1, 2, 100)
    torch.testing.assert_close(logits[0, 0, :3], plain[0, :3])
    assert logits[0, 0, 3:].unique().tolist() == [MASKED]
    assert greedy(Host(vit), [shown()], [{}], 4) == [KINDS[int(plain[0, :3].argmax())]]


@pytest.mark.parametrize(("pictures", "said"), [(0, "no pictures"), (2, "2 pictures")])
def test_rows_that_are_not_one_picture(vit: Backbone, shown: Callable[..., Sample], pictures: int, said: str) -> None:
    message = f"'s' has {said}, but the backbone 'tiny-vit' reads exactly one and no text; choose another backbone"
    with pytest.raises(UserError, match=message):
        vit.codec.encode([shown(pictures=pictures)])
    with pytest.raises(UserError, match="has 101 options, but the encoder 'tiny-vit' has 100 classes; raise"):
        vit.codec.encode([shown(answer="1", options=tuple(map(str, range(101))))])


def test_the_papers_adapters_have_the_papers_size() -> None:
    """Potara, 4.3: LoRA on ViT-B/16 has 147,456 params in A and as many in B."""
    adapter = make_lora("lora", {"r": 8, "targets": ["q_proj", "v_proj"]})
    assert adapter is not None
    backbone = made(name="vit-b16", device="meta")
    with torch.device("meta"):
        host = Host(backbone, adapter, [Slot("local")])
    sizes = {part: 0 for part in "AB"}
    for key, tensor in host.params.items():
        if key.startswith("local/"):
            sizes[key.rpartition("/")[2]] += tensor.numel()
    assert sizes == {"A": 147_456, "B": 147_456}


@pytest.mark.parametrize(("name", "layers"), [("vit-b16", (2, 5, 8, 11)), (NAME, (0, 1, 2, 5))])
def test_pqlora_finds_its_blocks(name: str, layers: tuple[int, ...]) -> None:
    adapter = make_pqlora("pqlora", {"r": 4, "blocks": 4, "targets": ["q_proj"]})
    assert adapter is not None
    sites = [site for site in adapter.sites(made(name=name, device="meta")) if site.scope == "all"]
    assert [site.path for site in sites] == [f"vit.layers.{layer}.attention.q_proj" for layer in layers]
    assert [site.name for site in sites] == [f"block{k}.attention.q_proj" for k in range(4)]


def test_former_names_of_targets_are_refused(vit: Backbone) -> None:
    adapter = make_lora("lora", {"targets": ["query"]})
    assert adapter is not None
    with pytest.raises(UserError, match=r"ends in 'query'; there are attention\.q_proj"):
        adapter.sites(vit)


def former(name: str) -> str:
    """A weight's name as google/vit-base-patch16-224-in21k has it: a model without a classifier, in the old layout."""
    name = name.removeprefix("vit.").replace("layers.", "encoder.layer.")
    for new, old in (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the layout of the hub's files."""
    target = tmp_path / "vit"
    model: Any = made(init=3).model
    model.save_pretrained(target)
    weights = {former(name): value for name, value in model.state_dict().items() if not name.startswith("classifier")}
    weights |= {"pooler.dense.weight": torch.zeros(96, 96), "pooler.dense.bias": torch.zeros(96)}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_files_of_the_hub_are_read_and_get_a_new_classifier(folder: Path) -> None:
    backbone = made(path=folder, classes=7)
    assert backbone.fresh_head == ("classifier",)
    known = dict(made(init=3).model.named_parameters())
    for name, value in backbone.model.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(known[name], value), name
    head = dict(backbone.module("classifier").named_parameters())
    assert head["weight"].shape == (7, 96)
    assert float(head["bias"].detach().abs().sum()) == 0.0
    assert made(path=folder, classes=7).digest == backbone.digest != made(path=folder, classes=8).digest


def test_how_pictures_are_read_is_taken_from_the_files(folder: Path, shown: Callable[..., Sample]) -> None:
    plain = made(path=folder)
    said = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    other = made(path=folder)
    assert other.digest != plain.digest
    pixel = other.codec.encode([shown()]).inputs["pixel_values"][0, :, 0, 0]
    torch.testing.assert_close(pixel, torch.tensor([0.0, 20.0, 40.0]) / 255)
    for wrong in ('{"image_std": [1, 0, 1]}', '{"image_mean": 0.5}', "[]", "{"):
        (folder / "preprocessor_config.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(UserError, match="preprocessor_config.json of backbone 'tiny-vit' does not say how"):
            made(path=folder)


def test_wrong_files(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    save_file({key: weights[key] for key in weights if "layer.2." not in key}, folder / "model.safetensors")
    with pytest.raises(UserError, match="lack 16 tensors"):
        made(path=folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(UserError, match="holds a model with 5 layers of width 96, but 'tiny-vit' has 6"):
        made(path=folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "deit"}))
    with pytest.raises(UserError, match="'tiny-vit' are of a 'deit', which it cannot read"):
        made(path=folder)


def test_the_bundled_weights_name_what_is_drawn() -> None:
    """With the classes that it was pretrained with, the classifier is the one of the files."""
    backbone = made(classes=96)
    assert backbone.fresh_head == ()
    assert made().fresh_head == ("classifier",)
    assert all_cards()[NAME].measured["mean"] > 80.0
