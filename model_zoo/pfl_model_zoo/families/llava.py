"""LLaVA-1.5 style models: a CLIP tower, a two-layer projector, and a Llama or Qwen2 decoder.

Weights come in the layout of transformers (`LlavaForConditionalGeneration`) or in that of the original LLaVA code
(see `llava_original`).
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaForConditionalGeneration, PreTrainedConfig

from pfl_model_zoo.cards import ZooCard
from pfl_model_zoo.families import llava_original
from pfl_model_zoo.families.files import locate
from pfl_model_zoo.families.models import (
    assemble,
    config_in,
    definition,
    digest_of_files,
    digest_of_random,
    from_files,
    random_model,
    read_model,
    read_tokenizer,
    specials_of,
)
from pfl_model_zoo.options import LoadOptions
from pfl_model_zoo.pictures import CLIP_MEAN, PictureReader
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError

IMAGE_TOKENS = ("<image>", "<|image_pad|>", "<|reserved_special_token_0|>")
"""Tokens that may stand for a patch where the configuration names none, the first that the tokenizer has."""


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """A vision-language model as a backbone."""
    if from_files(options):
        folder = locate(card, options)
        if llava_original.is_original(folder):
            model, digest = llava_original.read(folder, card, options)
        else:
            config_in(folder, card)
            model = read_model(LlavaForConditionalGeneration, folder, card, options)
            digest = digest_of_files(folder, card, options)
    else:
        config, folder = definition(card, options)
        model = random_model(LlavaForConditionalGeneration._from_config, config, options)
        digest = digest_of_random(config, folder, options)
    tokenizer = read_tokenizer(folder, card.name)
    model.config.image_token_id = image_token(tokenizer, model.config, card)
    specials = specials_of(tokenizer, folder, model.config.image_token_id)
    return assemble(
        card,
        options,
        model,
        tokenizer,
        specials,
        picture_reader(model.config, card, options),
        decoder="model.language_model",
        digest=digest,
    )


def image_token(tokenizer: Any, config: PreTrainedConfig, card: ZooCard) -> int:
    """Id of the token that stands for one patch. Its embedding is never read: the patch's features replace it."""
    known = tokenizer.get_vocab()
    for token in IMAGE_TOKENS:
        if token in known and known[token] < config.get_text_config().vocab_size:
            return int(known[token])
    raise UserError(
        f"The tokenizer of backbone '{card.name}' has no image token; it needs one of {', '.join(IMAGE_TOKENS)}."
    )


def picture_reader(config: Any, card: ZooCard, options: LoadOptions) -> PictureReader:
    """How the tower wants its pictures."""
    vision = config.vision_config
    if config.vision_feature_select_strategy != "default":
        raise UserError(
            f"The backbone '{card.name}' keeps the tower's class token "
            f"('{config.vision_feature_select_strategy}'); only vision_feature_select_strategy 'default' is supported."
        )
    return PictureReader(vision.image_size, vision.patch_size, mean=CLIP_MEAN, cache_bytes=options.cache_mb << 20)
