"""Text-only decoders of the Llama and Qwen2 kind."""

from __future__ import annotations

from transformers import AutoModelForCausalLM

from pfl_model_zoo.cards import ZooCard
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
from pfl_platform.backbones import Backbone


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """A causal language model as a backbone."""
    if from_files(options):
        folder = locate(card, options)
        config_in(folder, card)
        model = read_model(AutoModelForCausalLM, folder, card, options)
        digest = digest_of_files(folder, card, options)
    else:
        config, folder = definition(card, options)
        model = random_model(AutoModelForCausalLM.from_config, config, options)
        digest = digest_of_random(config, folder, options)
    tokenizer = read_tokenizer(folder, card.name)
    specials = specials_of(tokenizer, folder, None)
    return assemble(card, options, model, tokenizer, specials, None, decoder="model", digest=digest)
