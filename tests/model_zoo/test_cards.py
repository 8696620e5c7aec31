"""Cards, and what they promise about sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pfl_model_zoo.cards import PACKAGE, all_cards, find, lookup, read_card
from pfl_model_zoo.families.models import definition, size_of
from pfl_model_zoo.options import LoadOptions, read_options
from pfl_model_zoo.plugin import pfl_backbone_card, pfl_make_backbone
from pfl_platform.cli import main
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError

BUNDLED = [name for name, card in all_cards().items() if card.bundled]
REAL = [name for name, card in all_cards().items() if not card.bundled]
LARGEST = 3_000_000
TOGETHER = 16 * 1024 * 1024


def test_every_card_is_announced_and_every_announced_name_has_a_card(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    announced = project["entry-points"]["pfl_platform.backbones"]
    ours = {name for name, value in announced.items() if value == "pfl_model_zoo.plugin"}
    assert ours >= set(all_cards())
    assert all(lookup(name) is not None for name in ours)


@pytest.mark.parametrize("name", sorted(all_cards()))
def test_file_name_config_and_numbers_agree(name: str) -> None:
    card = all_cards()[name]
    assert card.name == name
    config, _ = definition(card, LoadOptions())
    assert size_of(config) == (card.layers, card.hidden_size)


@pytest.mark.parametrize(
    ("name", "r128"),
    [
        ("llava-llama-3.2-1b", 90_177_536),
        ("llava-llama-3.2-3b", 194_510_848),
        ("llava-llama-3.1-8b", 335_544_320),
        ("llava-qwen2.5-0.5b", 70_385_664),
        ("llava-qwen2.5-1.5b", 147_718_144),
        ("llava-qwen2.5-3b", 239_468_544),
    ],
)
def test_low_rank_adapters_have_the_published_sizes(name: str, r128: int) -> None:
    card = find(name)
    assert card.layers * sum(128 * (inputs + outputs) for _, inputs, outputs in card.linear_shapes()) == r128


@pytest.mark.parametrize("name", sorted(REAL))
def test_what_cards_derive_from_shapes_is_right(name: str) -> None:
    """`tools/zoo_cards.py` writes it; here it is worked out from the published sizes."""
    card, backbone = find(name), pfl_make_backbone(name, {"device": "meta"})
    assert backbone is not None
    assert card.adaptable == backbone.linears
    maps = [backbone.module(f"{block}.{linear}") for block in backbone.blocks for linear in backbone.linears_in(block)]
    kept = ["wo"] if card.family == "encoder_decoder" else []
    few = [
        module.weight.shape  # type: ignore[union-attr]
        for module, path in zip(
            maps, (linear for block in backbone.blocks for linear in backbone.linears_in(block)), strict=True
        )
        if path.rpartition(".")[2] not in kept
    ]
    values, rows = sum(shape.numel() for shape in few), sum(shape[0] for shape in few)  # type: ignore[operator, misc]
    rest = 2 * (card.num_params - values)
    expected = {"float32": 4 * card.num_params, "bfloat16": 2 * card.num_params, "8bit": rest + values + 4 * rows}
    expected["4bit"] = round(rest + values * (1 / 2 + 1 / 64 + 1 / 4096))
    assert card.memory == expected


@pytest.mark.parametrize("name", BUNDLED)
def test_the_frame_of_a_turn_is_the_card_s(name: str) -> None:
    card, backbone = find(name), pfl_make_backbone(name, {"device": "meta"})
    assert backbone is not None
    assert card.adaptable == backbone.linears
    assert card.memory["float32"] == 4 * card.num_params
    if card.family == "vit":
        assert not card.chat_template
        return
    asked = Sample("1", (Turn("Is it so?", "yes"),), options=("yes", "no"))
    ids = backbone.codec.encode([asked]).inputs["input_ids"][0].tolist()
    text = Tokenizer.from_file(str(PACKAGE / card.tokenizer / "tokenizer.json")).decode(ids, skip_special_tokens=True)
    # An end token is left out here, and a tokenizer may begin with a space.
    assert text.strip() == card.chat_template.format(question="Is it so?", answer="yes", end="")


def test_show_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "llava-llama-3.2-1b"]) == 0
    out = capsys.readouterr().out
    assert "chat_template: USER: {question} ASSISTANT: {answer}{end}" in out
    assert "adaptable: self_attn.q_proj, self_attn.k_proj," in out
    assert "memory: float32 6.18 GB, bfloat16 3.09 GB, 8bit 2.12 GB, 4bit 1.65 GB" in out


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_shapes_without_memory(name: str) -> None:
    backbone = pfl_make_backbone(name, {"device": "meta"})
    assert backbone is not None
    card = find(name)
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) == card.num_params
    shapes = {path: (outputs, inputs) for path, inputs, outputs in card.linear_shapes()}
    seen = set()
    for block in (backbone.blocks[0], backbone.blocks[-1]):
        for path in backbone.linears_in(block):
            assert tuple(backbone.module(f"{block}.{path}").weight.shape) == shapes[path]  # type: ignore[union-attr,arg-type]
            seen.add(path)
    assert seen == set(shapes) == set(backbone.linears)
    assert backbone.module(backbone.last_linear).weight.shape[0] == card.hidden_size  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("thkim0305/llama3.2_1B_vl", "llava-llama-3.2-1b"),
        ("thkim0305/llama3.2_3B_vl", "llava-llama-3.2-3b"),
        ("thkim0305/llama3.1_8B_vl", "llava-llama-3.1-8b"),
        ("thkim0305/qwen2.5_0.5B_vl", "llava-qwen2.5-0.5b"),
        ("thkim0305/qwen2.5_1.5B_vl", "llava-qwen2.5-1.5b"),
        ("thkim0305/qwen2.5_3B_vl", "llava-qwen2.5-3b"),
        ("meta-llama/Llama-3.2-1B", "llama-3.2-1b"),
        ("meta-llama/Llama-3.2-3B", "llama-3.2-3b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("FacebookAI/roberta-large", "roberta-large"),
        ("google-t5/t5-large", "t5-large"),
    ],
)
def test_scenario_files_resolve(alias: str, name: str) -> None:
    assert find(alias).name == name


def test_aliases_are_unambiguous() -> None:
    names = [alias.casefold() for card in all_cards().values() for alias in (card.name, *card.aliases)]
    assert len(names) == len(set(names))


def test_a_mistyped_name_gets_the_nearest() -> None:
    assert pfl_make_backbone("tiny-lava-llama-s", {}) is None
    assert pfl_backbone_card("tiny-lava-llama-s") is None
    with pytest.raises(UserError, match="Did you mean 'tiny-llava-llama-s'"):
        find("tiny-lava-llama-s")


def test_unknown_and_wrong_options_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"Backbone 'x' has no option 'dtyp'\. Did you mean 'dtype'\?"):
        read_options("x", {}, {"dtyp": "float32"})
    with pytest.raises(UserError, match="option 'dtype' cannot be 'int8'"):
        read_options("x", {}, {"dtype": "int8"})


def test_a_broken_card_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nfamilly: text\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.yaml is not valid"):
        read_card(path)


def test_cards_need_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, json; import pfl_model_zoo.plugin; from pfl_model_zoo.cards import all_cards; all_cards();"
        "print(json.dumps(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules))))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []


def test_the_tiny_backbones_differ_as_heterogeneous_clients_need() -> None:
    sizes = {(all_cards()[name].layers, all_cards()[name].hidden_size) for name in BUNDLED if "llava" in name}
    assert len(sizes) == 4
    assert min(all_cards()[name].layers for name in BUNDLED) >= 4
    assert any(all_cards()[name].layers % 4 for name in BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_small_and_measured(name: str) -> None:
    card = all_cards()[name]
    backbone = pfl_make_backbone(name, {})
    assert backbone is not None
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) == card.num_params <= LARGEST
    assert {"steps", "seconds", "loss", "mean"} <= set(card.measured)


def test_all_bundled_weights_together() -> None:
    files = list((PACKAGE / "weights").rglob("*.safetensors"))
    assert len(files) == len(BUNDLED)
    assert sum(path.stat().st_size for path in files) <= TOGETHER
    assert not [path for path in (PACKAGE / "weights").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
