"""LLaVA's two stages: from parts to a model that answers, through the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from pfl_model_zoo.cards import PACKAGE
from pfl_model_zoo.from_folder import card_of
from pfl_model_zoo.making.build import build
from pfl_model_zoo.making.stages import Wish, configured
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.cli import main
from pfl_platform.errors import UserError
from pfl_platform.store.run_folder import RunFolder

INKS = {"red": (225, 30, 35), "green": (30, 165, 50), "blue": (45, 80, 235)}
QUICK = ["--batch-size", "8", "--held-out", "6", "--metric", "exact", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and a tower, composed; pictures, captions and conversations."""
    root: Path = tmp_path_factory.mktemp("stages")
    backbone = pfl_make_backbone("tiny-llava-llama-s", {})
    assert backbone is not None
    tower: Any = backbone.module("model.vision_tower")
    tower.save_pretrained(root / "tower")
    build(PACKAGE / "weights" / "tiny-llama-s", root / "tower", root / "built", seed=3, layer=-1)
    (root / "images").mkdir()
    captions, talks = [], []
    for number in range(54):
        ink = list(INKS)[number % 3]
        Image.new("RGB", (32 + number // 3, 32), INKS[ink]).save(root / "images" / f"{number}.png")
        first = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": ink}]
        more = [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "yes" if ink == "red" else "no"}]
        record = {"id": str(number), "image": f"{number}.png"}
        captions.append({**record, "conversations": first})
        talks.append({**record, "conversations": [*first, *more]})
    talks.append({"id": "text", "conversations": talks[0]["conversations"][2:]})
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "talks.json").write_text(json.dumps(talks))
    return root


def zoo(root: Path, stage: str, folder: str, data: str, out: str, *words: str) -> int:
    given = ["--data", str(root / data), "--images", str(root / "images"), "--out", str(root / out)]
    return main(["zoo", stage, str(root / folder), *given, *QUICK, *words])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    return dict(model.named_parameters())


def losses(run: Path) -> list[float]:
    return [record["clients"]["all"]["metrics"]["loss/local"] for record in RunFolder.open(run).rounds()]


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert set(before) == set(after)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def parts(names: Sequence[str]) -> set[str]:
    return {name.split(".")[1] if name.startswith("model.") else name for name in names}


@pytest.fixture(scope="module")
def first(made: Path) -> Path:
    """The first stage's model."""
    words = ["--epochs", "6", "--save-every", "12", "--lr", "1e-2"]
    assert zoo(made, "train-projector", "built", "captions.json", "one", *words) == 0
    return made / "one"


def test_the_first_stage_trains_the_projector_alone(made: Path, first: Path) -> None:
    found = losses(made / "one.run")
    assert len(found) == 3
    assert found[-1] < 0.5 * found[0]
    names = changed(weights(made / "built"), weights(first))
    assert parts(sorted(names)) == {"multi_modal_projector"}
    assert len(names) == 4
    results = json.loads((made / "one.run" / "results.json").read_text())
    own = results["clients"]["all"]["self"]
    assert own["last"] > max(own["baseline"], 50), "three colours; a third by chance"
    config = RunFolder.open(made / "one.run").config
    assert (config.training.schedule, config.training.warmup_ratio) == ("cosine", 0.03)
    assert config.rounds * config.local_steps == 36


def test_the_second_stage_trains_projector_and_language_model(
    made: Path, first: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--epochs", "1", "--save-every", "4", "--lr", "1e-4"]
    assert zoo(made, "instruct-tune", "one", "talks.json", "two", *words) == 0
    names = changed(weights(first), weights(made / "two"))
    assert parts(sorted(names)) == {"multi_modal_projector", "language_model"}
    assert len([name for name in names if "language_model" in name]) == 38, "all of its 4 x 9 + 2 tensors"
    assert zoo(made, "instruct-tune", "one", "talks.json", "two", *words) == 2
    assert "is not empty; name a new one with --out" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        commit = RunFolder.commit_round

        def stopped(self: RunFolder, index: int, record: Any) -> None:
            if index == 1:
                raise KeyboardInterrupt
            commit(self, index, record)

        patch.setattr(RunFolder, "commit_round", stopped)
        assert zoo(made, "instruct-tune", "one", "talks.json", "again", *words) == 130
    assert not (made / "again").exists()
    assert zoo(made, "instruct-tune", "one", "talks.json", "again", *words, "--seed", "1") == 2
    assert "was begun with other settings" in capsys.readouterr().err
    assert zoo(made, "instruct-tune", "one", "talks.json", "again", *words) == 0
    assert not changed(weights(made / "two"), weights(made / "again"))


def test_the_second_stage_by_low_rank_adapters(made: Path, first: Path) -> None:
    words = ["--epochs", "0.2", "--rank", "4", "--set", "evaluation.baseline=false"]
    assert zoo(made, "instruct-tune", "one", "talks.json", "low", *words) == 0
    names = changed(weights(first), weights(made / "low"))
    assert parts(sorted(names)) == {"multi_modal_projector", "language_model"}
    assert len([name for name in names if "language_model" in name]) == 28, "4 x 7 linear maps"
    backbone = pfl_make_backbone(str(made / "low"), {})
    assert backbone is not None
    assert backbone.card.num_params == sum(value.numel() for value in weights(made / "low").values())


@pytest.mark.parametrize(
    ("stage", "data", "zero"), [("train-projector", "captions.json", "2"), ("instruct-tune", "talks.json", "3")]
)
def test_two_ranks_share_every_batch(made: Path, first: Path, stage: str, data: str, zero: str) -> None:
    """Through the launcher: what two ranks train together is what one process trains, to rounding."""
    words = ["--epochs", "0.3", "--lr", "1e-3", "--set", "evaluation.baseline=false"]
    assert zoo(made, stage, "one", data, f"alone-{stage}", *words) == 0
    given = ["--data", made / data, "--images", made / "images", "--out", made / f"ranks-{stage}", *QUICK, *words]
    launch = ["--engine", "deepspeed", "--ranks", "2", "--zero", zero]
    command = [sys.executable, "-m", "pfl_platform", "zoo", stage, made / "one", *given, *launch]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, alone, shared = (weights(made / name) for name in ("one", f"alone-{stage}", f"ranks-{stage}"))
    assert changed(before, alone) == changed(before, shared) != set()
    for name in changed(before, alone):
        moved = (alone[name].float() - before[name].float()).norm()
        apart = (shared[name].float() - alone[name].float()).norm()
        assert apart < 1e-3 * moved, name  # the files are float16: a step of that here or there


def test_what_is_published_holds_where_nothing_is_said(made: Path) -> None:
    wish = Wish("projector", made / "built", made / "captions.json", made / "images", save_every=1)
    config = configured(wish)
    training = config.training
    assert (training.lr, training.batch_size, training.warmup_ratio, config.rounds) == (1e-3, 256, 0.03, 1)
    second = configured(
        Wish("instructions", made / "built", made / "talks.json", made / "images", epochs=40, save_every=7)
    )
    assert (second.training.lr, second.training.batch_size) == (2e-5, 128)
    assert (second.rounds, second.local_steps) == (6, 7), "40 steps in rounds of about 7"
    low = configured(Wish("instructions", made / "built", made / "talks.json", made / "images", rank=8))
    assert (low.training.lr, set(low.training.lr_scale.values())) == (2e-4, {0.1})


def test_bad_input_is_one_sentence(made: Path, tmp_path: Path) -> None:
    captions, images = made / "captions.json", made / "images"

    def refused(
        said: str, stage: Any = "projector", folder: Path = made / "built", data: Path = captions, **more: Any
    ) -> None:
        with pytest.raises(UserError, match=said) as caught:
            configured(Wish(stage, folder, data, more.pop("images", images), **more))
        assert str(caught.value).count("\n") == 0

    refused("is no folder with a config.json", folder=tmp_path)
    refused(
        "holds no vision-language model; make one with `zoo build llava`", folder=PACKAGE / "weights" / "tiny-llama-s"
    )
    refused("holds a 'roberta'", folder=PACKAGE / "weights" / "tiny-roberta")
    refused("file of records .* does not exist", data=tmp_path / "no.json")
    refused(r"record 54 has no picture", data=made / "talks.json")
    refused("does not exist or cannot be read", images=tmp_path)
    refused("leaves nothing to learn", options={"benchmark.held_out": 54})
    refused("'rounds' follows from --epochs", sets=["rounds=2"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "x"}))
    refused("original LLaVA code; use `zoo convert` first", folder=tmp_path)
    with pytest.raises(UserError, match="is a folder already; leave out the backbone option path"):
        pfl_make_backbone(str(made / "built"), {"path": str(made)})
    with pytest.raises(UserError, match="nowhere does not exist or has no config.json"):
        card_of("/nowhere")


def test_a_model_without_projector_or_mark(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made / "built", broken)
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    file = index["weight_map"]["model.multi_modal_projector.linear_1.weight"]
    (broken / file).unlink()
    index["weight_map"] = {name: each for name, each in index["weight_map"].items() if each != file}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert zoo(made, "train-projector", str(broken), "captions.json", "never") == 2
    assert "lack 4 tensors, for example 'model.multi_modal_projector.linear_1.bias'" in capsys.readouterr().err
    blind = tmp_path / "blind"
    shutil.copytree(made / "built", blind)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (blind / name).write_text((blind / name).read_text().replace('"<image>"', '"<nothing>"'))
    assert zoo(made, "train-projector", str(blind), "captions.json", "never") == 2
    assert "has no image token; it needs one of <image>" in capsys.readouterr().err
    assert not (made / "never").exists()
    assert not (made / "never.run").exists()
