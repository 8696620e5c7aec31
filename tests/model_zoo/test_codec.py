"""Samples to tensors and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pfl_model_zoo.cards import find
from pfl_model_zoo.chat import render
from pfl_model_zoo.codec import ChatCodec
from pfl_model_zoo.families import models
from pfl_model_zoo.pictures import CLIP_MEAN, CLIP_STD, PictureReader
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.backbones import IGNORE, Backbone
from pfl_platform.data import FilePicture, Sample, Turn
from pfl_platform.errors import UserError

Ask = Callable[..., Sample]


def patches(backbone: Backbone) -> int:
    """Image tokens of a picture, from the card: the tower cuts each side into patches."""
    vision = find(backbone.name).config["vision_config"]
    per_side: int = vision["image_size"] // vision["patch_size"]
    return per_side * per_side


def codec_of(backbone: Backbone) -> ChatCodec:
    assert isinstance(backbone.codec, ChatCodec)
    return backbone.codec


def ids_of(backbone: Backbone, sample: Sample, **flags: bool) -> list[int]:
    """A row's ids without padding."""
    encoded = backbone.codec.encode([sample], **flags)
    ids: list[int] = encoded.inputs["input_ids"][0].tolist()
    return ids


def test_text_is_the_same_for_all_backbones(random_backbone: Callable[[str], Backbone], ask: Ask) -> None:
    sample = ask("<image>\nWhat colour?", "red", 1)
    texts = {tuple(random_backbone(f"tiny-llava-{name}-s").codec.encode([sample]).texts) for name in ("llama", "qwen")}
    assert texts == {("USER: <image>\nWhat colour? ASSISTANT: red\n",)}


def test_tokenizers_cut_differently(random_backbone: Callable[[str], Backbone], ask: Ask) -> None:
    sample = ask("Is the diamond left of 12 others?")
    cuts = [
        {tuple(span) for span in random_backbone(f"tiny-llava-{name}-s").codec.encode([sample]).spans[0]}
        for name in ("llama", "qwen")
    ]
    assert cuts[0] - cuts[1]
    assert cuts[1] - cuts[0]


def test_every_span_is_the_text_of_its_token(llava: Backbone, ask: Ask) -> None:
    codec = codec_of(llava)
    encoded = codec.encode([ask("<image>\nWhere is <image> it, top left?", "in the corner", 2)])
    text, covered = encoded.texts[0], 0
    for token, (start, end) in zip(encoded.inputs["input_ids"][0].tolist(), encoded.spans[0], strict=True):
        if start < 0:
            assert token == codec.specials.bos
        elif token == codec.specials.image:
            assert text[start:end] == "<image>"
            covered = end
        elif token == codec.specials.end:
            assert text[start:end] == "\n"
            covered = end
        else:
            assert codec.tokenizer.decode([token]) == text[start:end]
            assert start == covered
            covered = end
    assert covered == len(text)


@given(human=st.text(min_size=1, max_size=40), answer=st.text(max_size=20))
@pytest.mark.parametrize("name", ["tiny-llava-llama-s", "tiny-llava-qwen-s", "tiny-llama-s"])
def test_any_text_is_covered_and_answers_come_back(name: str, human: str, answer: str) -> None:
    sample = Sample("s", (Turn(human.replace("<image>", ""), answer),))
    backbone = pfl_make_backbone(name, {"init": 7}) if name not in MADE else MADE[name]
    assert backbone is not None
    MADE[name] = backbone
    encoded = backbone.codec.encode([sample])
    text = encoded.texts[0]
    covered = set()
    for start, end in encoded.spans[0]:
        covered.update(range(start, end))
    assert covered >= set(range(len(text)))
    supervised = [label for label in encoded.labels[0].tolist() if label != IGNORE]
    assert backbone.codec.decode(supervised) == answer.strip()


MADE: dict[str, Backbone] = {}


def test_words_that_look_like_special_tokens_are_text(llava: Backbone, ask: Ask) -> None:
    ids = ids_of(llava, ask("Is </s> or <|im_end|> or <pad> special?", "no </s>"))
    assert ids.count(codec_of(llava).specials.end) == 1


def test_supervised_tokens_are_the_answers_and_their_ends(llava: Backbone) -> None:
    sample = Sample("s", (Turn("What colour?", "dark red"), Turn("What shape?", "ring")))
    encoded = llava.codec.encode([sample])
    labels, ids = encoded.labels[0], encoded.inputs["input_ids"][0]
    picked = labels != IGNORE
    assert torch.equal(labels[picked], ids[picked])
    learned = "".join(
        encoded.texts[0][start:end]
        for (start, end), keep in zip(encoded.spans[0], picked.tolist(), strict=True)
        if keep
    )
    assert learned == " dark red\n ring\n"


def test_decode_stops_at_the_first_end(llava: Backbone, ask: Ask) -> None:
    labels = llava.codec.encode([ask("?", "two rings")]).labels[0]
    ids = [label for label in labels.tolist() if label != IGNORE]
    assert llava.codec.decode([*ids, *ids]) == "two rings"


def test_generation_prefix_is_the_training_prefix(llava: Backbone, ask: Ask) -> None:
    sample = ask("<image>\nWhat colour is it?", "red", 1)
    prompt, row = ids_of(llava, sample, answers=False), ids_of(llava, sample)
    answer = int((llava.codec.encode([sample]).labels[0] != IGNORE).sum())
    assert row[:-answer] == prompt


def test_generation_shows_the_first_turn_only(llava: Backbone) -> None:
    from_two = Sample("a", (Turn("One?", "1"), Turn("Two?", "2")))
    assert llava.codec.encode([from_two], answers=False).texts == ["USER: One? ASSISTANT:"]


def test_padding_is_right_for_training_and_left_for_generation(llava: Backbone, ask: Ask) -> None:
    samples = [ask("Short?", name="a"), ask("A rather longer question, is it not?", name="b")]
    for answers, padded in ((True, slice(-3, None)), (False, slice(0, 3))):
        encoded = llava.codec.encode(samples, answers=answers)
        assert encoded.inputs["input_ids"][0, padded].tolist() == [llava.codec.pad_id] * 3
        assert encoded.inputs["attention_mask"][0, padded].tolist() == [0, 0, 0]
        assert list(encoded.spans[0][padded]) == [(-1, -1)] * 3
        assert encoded.labels[0, padded].tolist() == [IGNORE] * 3
        assert encoded.tokens == sum(len(ids_of(llava, sample, answers=answers)) for sample in samples)
        assert [len(row) for row in encoded.spans] == [encoded.labels.shape[1]] * 2


def test_padding_changes_no_logits(llava: Backbone, ask: Ask) -> None:
    short, long = ask("Hm?", "no", name="a"), ask("<image>\nWhat colour is the ring?", "red", 2, name="b")
    with torch.no_grad():
        alone = llava.model(**llava.codec.encode([short], answers=False).inputs).logits[0, -1]
        together = llava.model(**llava.codec.encode([short, long], answers=False).inputs).logits[0, -1]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_each_mark_becomes_its_pictures_tokens_in_order(llava: Backbone, ask: Ask) -> None:
    samples = [ask("<image> and <image>?", "red", 2, name="a"), ask("<image>", "red", 1, name="b")]
    encoded = llava.codec.encode(samples)
    image = codec_of(llava).specials.image
    counts = (encoded.inputs["input_ids"] == image).sum(1).tolist()
    assert counts == [2 * patches(llava), patches(llava)]
    pixels = encoded.inputs["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.float32
    red = (pixels[:, 0, 0, 0] * CLIP_STD[0] + CLIP_MEAN[0]) * 255
    torch.testing.assert_close(red, torch.tensor([0.0, 10.0, 0.0]), atol=1e-3, rtol=0.0)


def test_pictures_decide_the_answer(llava: Backbone, ask: Ask) -> None:
    first, second = (
        Sample(str(red), (Turn("<image>?", "x"),), (picture,))
        for red, picture in ((0, ask("", pictures=1).pictures[0]), (1, ask("", pictures=9).pictures[8]))
    )
    with torch.no_grad():
        logits = llava.model(**llava.codec.encode([first, second]).inputs).logits
    assert not torch.equal(logits[0], logits[1])


def test_missing_marks_come_first(ask: Ask) -> None:
    assert render(ask("Compare <image>.", pictures=3)).text.startswith("USER: <image>\n<image>\nCompare <image>.")


def test_more_marks_than_pictures_is_an_error(llava: Backbone, ask: Ask) -> None:
    with pytest.raises(UserError, match="Sample 's' has 2 <image> marks but 1 pictures"):
        llava.codec.encode([ask("<image><image>", pictures=1)])


def test_marks_of_later_turns_count(llava: Backbone, ask: Ask) -> None:
    pictures = ask("", pictures=2).pictures
    sample = Sample("s", (Turn("<image> one?", "1"), Turn("<image> two?", "2")), pictures)
    assert llava.codec.encode([sample]).inputs["pixel_values"].shape[0] == 2
    assert llava.codec.encode([sample], answers=False).inputs["pixel_values"].shape[0] == 1


def test_a_text_only_backbone_refuses_pictures(random_backbone: Callable[[str], Backbone], ask: Ask) -> None:
    with pytest.raises(UserError, match="'s' has pictures but the backbone 'tiny-llama-s' reads text only"):
        random_backbone("tiny-llama-s").codec.encode([ask("What?", pictures=1)])


def test_a_truncated_picture_is_an_error(llava: Backbone, tmp_path: Callable[..., object]) -> None:
    path = tmp_path / "half.png"  # type: ignore[operator]
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"half\.png cannot be read"):
        llava.codec.encode([Sample("s", (Turn("<image>", "x"),), (FilePicture(path),))])


def test_long_rows_lose_the_left_of_the_prompt(llava: Backbone, ask: Ask) -> None:
    codec = codec_of(llava)
    short = ChatCodec("short", codec.tokenizer, codec.specials, codec.reader, max_length=40)
    sample = ask("<image>\n" + "blue " * 60 + "What colour?", "dark red", 1)
    encoded = short.encode([sample])
    ids = encoded.inputs["input_ids"][0]
    assert len(ids) == 40
    assert int((ids == codec.specials.image).sum()) == patches(llava)
    whole = codec.encode([sample])
    assert ids[-10:].tolist() == whole.inputs["input_ids"][0][-10:].tolist()
    learned = short.decode([label for label in encoded.labels[0].tolist() if label != IGNORE])
    assert learned == "dark red"
    tighter = ChatCodec("tighter", codec.tokenizer, codec.specials, codec.reader, max_length=8)
    with pytest.raises(UserError, match="raise the backbone option max_length"):
        tighter.encode([sample])


def test_a_changed_sample_with_an_old_id_is_read_anew(llava: Backbone, ask: Ask) -> None:
    assert ids_of(llava, ask("One?", name="same")) != ids_of(llava, ask("Two?", name="same"))


def test_caches_are_bounded(llava: Backbone, ask: Ask) -> None:
    codec = codec_of(llava)
    reader = PictureReader(32, 8, cache_bytes=3 * 3 * 32 * 32)
    bounded = ChatCodec("bounded", codec.tokenizer, codec.specials, reader, max_length=100, cache_rows=3)
    for index in range(9):
        bounded.encode([ask("<image>", pictures=4, name=str(index))])
    assert 1 <= len(bounded._rows) <= 6
    assert 1 <= len(reader._cache) <= 3


def test_what_comes_from_the_cache_is_what_was_made(llava: Backbone, ask: Ask) -> None:
    codec = codec_of(llava)
    reader = PictureReader(32, 8)
    fresh = ChatCodec("fresh", codec.tokenizer, codec.specials, reader, max_length=100)
    samples = [ask("Caf\u00e9 and <image>?", "r\u00f6t", 2, name="a"), ask("Short?", "", name="b")]
    for answers in (True, False):
        first, again = fresh.encode(samples, answers=answers), fresh.encode(samples, answers=answers)
        assert first.inputs.keys() == again.inputs.keys()
        assert all(torch.equal(value, again.inputs[name]) for name, value in first.inputs.items())
        assert torch.equal(first.labels, again.labels)
        assert (first.texts, list(map(list, first.spans))) == (again.texts, list(map(list, again.spans)))
    assert len(fresh._rows) == 4
    assert len(reader._cache) == 2


def test_wide_pictures_are_padded_with_the_mean_colour() -> None:
    wide = PictureReader(4, 2).resized(_Wide())
    # 8 x 4 pixels of 200 become a square with two rows of padding above and below, then 4 x 4.
    assert wide.shape == (3, 4, 4)
    fill = [int(255 * mean) for mean in CLIP_MEAN]
    large = PictureReader(8, 2).resized(_Wide())
    assert large[:, 0, 0].tolist() == fill
    assert large[:, 7, 7].tolist() == fill
    assert large[:, 3, 0].tolist() == [200, 200, 200]


class _Wide:
    key = "wide"

    def load(self) -> Image.Image:
        return Image.new("L", (8, 4), 200)


def test_longest_row_follows_the_model(random_backbone: Callable[[str], Backbone]) -> None:
    assert codec_of(random_backbone("tiny-llama-s")).max_length == 1024
    assert models.LONGEST_ROW == 4096
