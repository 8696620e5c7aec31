"""Folders that are converted or composed load as backbones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pfl_model_zoo.cards import PACKAGE
from pfl_model_zoo.families.llava_original import RENAMED
from pfl_model_zoo.making.build import build
from pfl_model_zoo.making.command import zoo
from pfl_model_zoo.making.convert import convert
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.host import Host
from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy

NAME = "tiny-llava-llama-s"
Random = Callable[[str], Backbone]


def loaded(path: Path, **options: Any) -> Backbone:
    backbone = pfl_make_backbone(NAME, {"path": path, **options})
    assert backbone is not None
    return backbone


@pytest.fixture
def published(random_backbone: Random, tmp_path: Path) -> Path:
    """A random model as the original code writes it: two files, no tower, which lies beside in its own folder."""
    backbone = random_backbone(NAME)
    model: Any = backbone.model
    folder = tmp_path / "published"
    folder.mkdir()
    config = {**model.config.text_config.to_dict(), "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"}
    config |= {"mm_vision_select_layer": -1, "mm_vision_tower": "openai/none", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}
    for key, value in model.state_dict().items():
        if "vision_tower" not in key:
            weights[next(old + key[len(new) :] for old, new in RENAMED if key.startswith(new))] = value.clone()
    weights.pop("lm_head.weight")
    names = sorted(weights)
    for number, part in enumerate((names[:20], names[20:])):
        save_file({name: weights[name] for name in part}, folder / f"model-{number}.safetensors")
    for file in (PACKAGE / "weights" / NAME).glob("tokenizer*"):
        shutil.copy(file, folder)
    tower: Any = backbone.module("model.vision_tower")
    tower.save_pretrained(tmp_path / "tower")
    return folder


def test_a_round_trip_gives_the_same_logits(
    random_backbone: Random, published: Path, tmp_path: Path, ask: Callable[..., Sample]
) -> None:
    out = tmp_path / "out"
    assert convert(published, tmp_path / "tower", out) == random_backbone(NAME).card.num_params
    backbone = loaded(out)
    inputs = backbone.codec.encode([ask("<image>What?", pictures=1), ask("Why?")]).inputs
    with torch.no_grad():
        ours, first = (one.model(**inputs).logits for one in (backbone, random_backbone(NAME)))
    assert torch.equal(ours, first)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava"
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == 3
    for name, file in index.items():
        with safe_open(out / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_what_cannot_be_converted(published: Path, tmp_path: Path, random_backbone: Random) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"comes without its vision tower; name the tower's folder with --vision"):
        convert(published, None, out)
    with pytest.raises(UserError, match=r"checkpoint somebody/model is no folder.*a hub name is not looked up"):
        convert(Path("somebody/model"), None, out)
    with pytest.raises(UserError, match="vision tower .* is no folder with a config.json"):
        convert(published, tmp_path / "nothing", out)
    file = published / "model-1.safetensors"
    weights = load_file(file)
    save_file({**weights, "model.strange.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"no place for, such as 'model\.language_model\.strange\.weight'"):
        convert(published, tmp_path / "tower", out)
    save_file({name: value for name, value in weights.items() if "layers.3" not in name}, file)
    with pytest.raises(UserError, match=r"lack [0-9]+ tensors, for example 'model\.language_model\.layers\.3"):
        convert(published, tmp_path / "tower", out)
    save_file(weights, file)
    tokens = (published / "tokenizer.json").read_text()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (published / name).read_text()
        (published / name).write_text(text.replace('"<image>"', '"<nothing>"'))
    with pytest.raises(UserError, match="has no image token; it needs one of <image>"):
        convert(published, tmp_path / "tower", out)
    model: Any = random_backbone(NAME).model
    model.save_pretrained(tmp_path / "present")
    with pytest.raises(UserError, match="is not in the layout of the original LLaVA code"):
        convert(tmp_path / "present", None, out)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    out.mkdir()
    (out / "something").touch()
    (published / "tokenizer.json").write_text(tokens)
    with pytest.raises(UserError, match="is not empty"):
        convert(published, tmp_path / "tower", out)


def test_a_model_of_parts_loads_and_answers(published: Path, tmp_path: Path, ask: Callable[..., Sample]) -> None:
    language, out = PACKAGE / "weights" / "tiny-llama-s", tmp_path / "out"
    run = typer.main.get_command(zoo)
    words = ["build", "llava", "--language", str(language), "--vision", str(tmp_path / "tower"), "--out", str(out)]
    run.main([*words, "--seed", "3", "--layer", "-1"], standalone_mode=False)
    backbone = loaded(out)
    model: Any = backbone.model
    assert model.config.image_token_id == 2048
    assert model.get_input_embeddings().weight.shape == (2049, 96)
    plain = pfl_make_backbone("tiny-llama-s", {})
    assert plain is not None
    old = dict(plain.model.named_parameters())["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight[:2048], old)
    assert torch.equal(model.get_input_embeddings().weight[2048], old.mean(0).half().float())
    host = Host(backbone)
    assert len(greedy(host, [ask("<image>What?", pictures=1), ask("Why?")], ({},), 4)) == 2
    colours = [host.encode([ask("<image>", pictures=count)]).inputs["picture_features"] for count in (1, 2)]
    assert colours[1].shape == (2, 4, 96)
    assert torch.equal(colours[0][0], colours[1][0])
    assert not torch.equal(colours[1][0], colours[1][1])
    text = {"input_ids": torch.arange(5, 25)[None], "use_cache": False}
    with torch.no_grad():
        assert torch.allclose(model(**text).logits[..., :2048], plain.model(**text).logits, atol=1e-5)
    again = tmp_path / "again"
    build(language, tmp_path / "tower", again, seed=3, layer=-1)
    assert loaded(again).digest == backbone.digest
    with pytest.raises(UserError, match="has no layer -9"):
        build(language, tmp_path / "tower", tmp_path / "deeper", layer=-9)
    with pytest.raises(UserError, match=r"is a 'roberta'; it must be one of llama, qwen2"):
        build(PACKAGE / "weights" / "tiny-roberta", tmp_path / "tower", tmp_path / "no")


def test_folders_that_are_no_parts_of_a_llava(published: Path, tmp_path: Path) -> None:
    language, out = PACKAGE / "weights" / "tiny-llama-s", tmp_path / "out"
    with pytest.raises(UserError, match="tiny-vit is a 'vit'; it must be one of clip"):
        build(language, PACKAGE / "weights" / "tiny-vit", out)
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "nobody_knows"}')
    with pytest.raises(UserError, match="language model .*odd has no configuration that can be read"):
        build(odd, tmp_path / "tower", out)
    assert not out.exists()
