"""Encoder-decoders: pairs, losses, generation, and which side a linear map reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_model_zoo.cards import encoder_decoder_linears
from pfl_model_zoo.pairs import PairCodec
from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix, Slot
from pfl_platform.backbones import IGNORE, Backbone, OneStepCodec
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.rng import torch_rng
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.surfaces import Output
from pfl_plugins.lora.plugin import pfl_make_adapter

Random = Callable[[str], Backbone]
NAME = "tiny-t5"
PAIR = (
    Sample("a", (Turn("Is it?", "no"),)),
    Sample("b", (Turn("Repeat the words: dog cat horse.", "dog cat horse"),)),
)


@pytest.fixture
def pairs(random_backbone: Random) -> Backbone:
    return random_backbone(NAME)


def made(**options: Any) -> Backbone:
    backbone = pfl_make_backbone(NAME, options)
    assert backbone is not None
    return backbone


def adapted(targets: Sequence[str] = ()) -> Host:
    """A backbone of its own with one slot of random params."""
    backbone = made(init=7)
    adapter = pfl_make_adapter("lora", {"r": 4, "targets": list(targets)})
    assert adapter is not None
    host = Host(backbone, adapter, [Slot("local")])
    first = adapter.initial(backbone, "local", 0)
    host.load({key: 0.2 * torch.randn(value.shape, generator=torch_rng(0, key)) for key, value in first.items()})
    return host


def test_what_the_core_needs_is_there(pairs: Backbone) -> None:
    assert isinstance(pairs.codec, PairCodec)
    assert not isinstance(pairs.codec, OneStepCodec)
    assert len(pairs.blocks) == pairs.card.layers == 7
    assert pairs.blocks[3:5] == ("encoder.block.3", "decoder.block.0")
    assert [len(pairs.linears_in(block)) for block in pairs.blocks] == [6] * 4 + [10] * 3
    assert pairs.last_linear == "decoder.block.2.layer.2.DenseReluDense.wo"
    assert isinstance(pairs.module(pairs.head), torch.nn.Linear)
    assert pairs.task_head == ()


def test_gated_models_have_three_maps() -> None:
    assert encoder_decoder_linears({"feed_forward_proj": "gated-gelu"})[-3:] == tuple(
        f"layer.2.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")
    )


def test_the_decoder_gets_the_answer_behind_a_start(pairs: Backbone) -> None:
    encoded = pairs.codec.encode(PAIR)
    inputs, labels = encoded.inputs, encoded.labels
    assert labels.shape == inputs["decoder_input_ids"].shape == inputs["decoder_attention_mask"].shape
    codec = pairs.codec
    assert isinstance(codec, PairCodec)
    for row, sample in enumerate(PAIR):
        own = int(inputs["decoder_attention_mask"][row].sum())
        assert inputs["decoder_input_ids"][row, 0] == codec.start
        assert torch.equal(inputs["decoder_input_ids"][row, 1:own], labels[row, 1:own])
        assert labels[row, 0] == IGNORE
        assert bool((labels[row, own:] == IGNORE).all())
        assert labels[row, own - 1] in codec.stop_ids
        assert codec.decode(labels[row, 1:own].tolist()) == sample.gold[0]
        asked = inputs["input_ids"][row, : int(inputs["attention_mask"][row].sum())].tolist()
        assert codec.decode(asked) == sample.turns[0].human
        assert asked[-1] == codec.end
        spans = list(encoded.spans[row])
        assert "".join(encoded.texts[row][a:b] for a, b in spans[1:own]) == f" {sample.gold[0]}\n"
        assert spans[0] == (-1, -1)
    assert encoded.tokens == int(inputs["attention_mask"].sum()) + int(inputs["decoder_attention_mask"].sum())


def test_only_the_first_turn_is_read(pairs: Backbone) -> None:
    two = Sample("a", (Turn("Is it?", "no"), Turn("Really?", "yes")))
    for name, value in pairs.codec.encode([two]).inputs.items():
        assert torch.equal(value, pairs.codec.encode([PAIR[0]]).inputs[name]), name


def test_the_loss_is_the_models_own(pairs: Backbone) -> None:
    """transformers' loss of a row is the mean over its answer tokens, without the start."""
    encoded = pairs.codec.encode([PAIR[1]])
    with torch.no_grad():
        logits = pairs.model(**encoded.inputs, use_cache=False).logits
        own = pairs.model(
            input_ids=encoded.inputs["input_ids"],
            attention_mask=encoded.inputs["attention_mask"],
            labels=encoded.labels[:, 1:],
        ).loss
    torch.testing.assert_close(answer_loss(Output(logits, encoded))[0], own)


def test_padding_changes_no_loss(pairs: Backbone) -> None:
    """Rows are weighted by their tokens: 2 of 6, and 4 of 6, times two rows."""
    encoded = pairs.codec.encode(PAIR)
    tokens = (encoded.labels != IGNORE).sum(1)
    with torch.no_grad():
        together = answer_loss(Output(pairs.model(**encoded.inputs, use_cache=False).logits, encoded))
        for row, sample in enumerate(PAIR):
            alone = pairs.codec.encode([sample])
            mean = answer_loss(Output(pairs.model(**alone.inputs, use_cache=False).logits, alone))[0]
            torch.testing.assert_close(together[row], mean * tokens[row] * 2 / tokens.sum(), atol=1e-5, rtol=1e-5)


def without_cache(host: Host, sample: Sample, passes: Sequence[Mix], most: int) -> str:
    """Greedy generation that reads everything anew at every token."""
    codec = host.backbone.codec
    asked = codec.encode([sample], answers=False).inputs
    ids: list[int] = asked["decoder_input_ids"][0].tolist()
    for _ in range(most):
        total = torch.zeros(())
        for mix in passes:
            with torch.no_grad(), host.mixing(mix):
                found: Tensor = host.backbone.model(
                    input_ids=asked["input_ids"], decoder_input_ids=torch.tensor([ids]), use_cache=False
                ).logits
            total = total + found[0, -1]
        ids.append(int(total.argmax()))
        if ids[-1] in codec.stop_ids:
            break
    return codec.decode(ids[1:])


@pytest.mark.parametrize("passes", [[{}], [{"local": 1.0}], [{"local": 1.0}, {"local": -0.5}]])
def test_generation_with_caches_and_padding(passes: list[Mix]) -> None:
    host = adapted()
    assert greedy(host, PAIR, passes, 6) == [without_cache(host, sample, passes, 6) for sample in PAIR]


def test_adapters_attach_to_queries_and_values_by_name() -> None:
    host = adapted(["q", "v"])
    paths = {layer.site.path for layer in host.layers.values()}
    assert len(paths) == 2 * (4 + 2 * 3)
    assert {path.rpartition(".")[2] for path in paths} == {"q", "v"}
    assert len(adapted().layers) == 6 * 4 + 10 * 3


def test_each_linear_map_reads_the_side_whose_mask_it_is_given(pairs: Backbone) -> None:
    """By the shapes that really arrive: questions of 5 and answers of other lengths."""
    encoded = pairs.codec.encode(PAIR)
    widths = {encoded.inputs[name].shape[1] for name in ("attention_mask", "decoder_attention_mask")}
    assert len(widths) == 2
    seen: dict[str, int] = {}
    handles = [
        pairs.module(f"{block}.{path}").register_forward_pre_hook(
            lambda module, args, at=f"{block}.{path}": seen.__setitem__(at, args[0].shape[1])
        )
        for block in pairs.blocks
        for path in pairs.linears_in(block)
    ]
    with torch.no_grad():
        pairs.model(**encoded.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(seen) == 6 * 4 + 10 * 3
    assert seen == {path: pairs.mask(path, encoded.inputs).shape[1] for path in seen}


def test_answers_that_do_not_fit() -> None:
    long = Sample("long", (Turn("Say it.", "dog " * 60),))
    with pytest.raises(UserError, match=r"'long' has an answer of \d+ tokens, but rows of 'tiny-t5' have at most 32"):
        made(init=0, max_length=32).codec.encode([long])
