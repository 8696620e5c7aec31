"""Encoder-decoders of the T5 kind: the encoder reads the question, the decoder writes the answer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5ForConditionalGeneration

from pfl_model_zoo.cards import ZooCard, encoder_decoder_linears
from pfl_model_zoo.families.files import locate
from pfl_model_zoo.families.models import (
    check_type,
    config_in,
    definition,
    digest_of_files,
    digest_of_random,
    from_files,
    frozen,
    random_model,
    read_model,
    read_tokenizer,
    specials_of,
)
from pfl_model_zoo.options import LoadOptions
from pfl_model_zoo.pairs import PairCodec
from pfl_model_zoo.questions import QuestionReader
from pfl_platform.backbones import Backbone

LONGEST = 512
"""Rows are cut here unless the option max_length says otherwise: positions are relative, so a model names no limit."""
ANSWER_SIDE = ("decoder.*.SelfAttention.*", "decoder.*.EncDecAttention.[qo]", "decoder.*.DenseReluDense.*")
"""Linear maps that read the answer. Keys and values of the attention between the two sides read the question."""


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """An encoder-decoder as a backbone; its blocks are the encoder's and then the decoder's."""
    if from_files(options):
        folder = locate(card, options)
        check_type(config_in(folder, card), card, ("t5",))
        model = read_model(T5ForConditionalGeneration, folder, card, options)
        digest = digest_of_files(folder, card, options)
    else:
        config, folder = definition(card, options)
        check_type(config, card, ("t5",))
        model = random_model(T5ForConditionalGeneration._from_config, config, options)
        if from_seed(options):
            rescale(model)
        digest = digest_of_random(config, folder, options)
    config = model.config
    tokenizer = read_tokenizer(folder, card.name)
    specials = specials_of(tokenizer, folder, None)
    reader = QuestionReader(
        card.name,
        tokenizer.backend_tokenizer,
        pad=specials.pad,
        opening=None,
        closing=specials.end,
        max_length=options.max_length or LONGEST,
        cache_rows=options.cache_rows,
    )
    blocks = tuple(
        f"{side}.block.{index}"
        for side, count in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers))
        for index in range(count)
    )
    linears = encoder_decoder_linears(config.to_dict())
    return Backbone(
        card=card.to_card(),
        model=frozen(model, options),
        codec=PairCodec(reader, start=int(config.decoder_start_token_id), end=specials.end, stop=specials.stop),
        blocks=blocks,
        linears=linears,
        final_norm="decoder.final_layer_norm",
        head="lm_head",
        last_linear=f"{blocks[-1]}.{linears[-1]}",
        digest=digest,
        answer_side=ANSWER_SIDE,
    )


def from_seed(options: LoadOptions) -> bool:
    return options.init is not None and options.device != "meta"


def rescale(model: Any) -> None:
    """Random weights to the sizes that this kind of model wants: queries carry the scale of their products, and the
    embeddings, which are also the output head, are of size 1."""
    with torch.no_grad():
        model.shared.weight.mul_(model.config.d_model**0.5)
        for name, value in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                value.mul_(model.config.d_kv**-0.5)
