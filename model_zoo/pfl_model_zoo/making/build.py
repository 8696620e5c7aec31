"""A LLaVA of a language model and a CLIP tower, with a projector that has learned nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, LlavaConfig

from pfl_model_zoo.families.files import weight_files
from pfl_model_zoo.families.llava import IMAGE_TOKENS
from pfl_model_zoo.families.llava_original import _tower
from pfl_model_zoo.families.models import draw_weights, read_tokenizer
from pfl_model_zoo.making.folder import dtype_name, existing, names_in, new_folder, pieces
from pfl_model_zoo.options import LoadOptions
from pfl_platform.errors import UserError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
KINDS = ("llama", "qwen2")
TOWERS = ("clip", "clip_vision_model")


def _config(folder: Path, what: str) -> Any:
    """A folder's configuration. Raises `UserError` where it is none that transformers knows."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"The {what} {folder} has no configuration that can be read: {first}") from None


def build(language: Path, vision: Path, out: Path, seed: int = 0, layer: int = -2) -> int:
    """Writes a `LlavaForConditionalGeneration` of both into `out`; returns how many params it has.

    The image token is one that the tokenizer has, else `<image>` is added to it, with a row of the mean of all
    embeddings, which is never read. seed: the projector's weights. layer: whose states of the tower are taken.
    """
    existing(language, "language model")
    existing(vision, "vision tower")
    text = _config(language, "language model")
    sight = _config(vision, "vision tower")
    if sight.model_type not in TOWERS:
        raise UserError(f"The vision tower {vision} is a '{sight.model_type}'; it must be one of {', '.join(TOWERS)}.")
    if text.model_type not in KINDS:
        raise UserError(
            f"The language model {language} is a '{text.model_type}'; it must be one of {', '.join(KINDS)}."
        )
    tokenizer = read_tokenizer(language, language.name)
    token, vocabulary = _image_token(tokenizer, int(text.vocab_size))
    text.vocab_size = vocabulary
    files = weight_files(language, language.name, allow_pickle=False)
    with new_folder(out) as folder:
        kind = ""
        for file in files:
            tensors = pieces(file, lambda name: None if name.endswith("inv_freq") else _renamed(name))
            kind = kind or dtype_name(tensors)
            for name in {_renamed(EMBEDDING), HEAD} & set(tensors):
                tensors[name] = _longer(tensors[name], vocabulary)
            folder.add(tensors)
        tower, settings = _tower(vision, LoadOptions.model_validate({"dtype": kind}))
        tokens = (int(settings["image_size"]) // int(settings["patch_size"])) ** 2
        config: Any = LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **settings},
            text_config=text.to_dict(),
            image_token_index=token,
            vision_feature_layer=layer,
            vision_feature_select_strategy="default",
            image_seq_length=tokens,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )
        if not -int(settings["num_hidden_layers"]) <= layer <= -1:
            raise UserError(f"The vision tower {vision} has no layer {layer}; name one from the last, -1, on.")
        config.dtype = kind
        config.architectures = ["LlavaForConditionalGeneration"]
        folder.add({f"model.vision_tower.{name}": value for name, value in tower.items() if "position_ids" not in name})
        folder.add(_projector(config, kind, seed))
        wanted = set(names_in(config))
        wanted -= {HEAD} if config.tie_word_embeddings else set()
        unlike = sorted(wanted ^ (folder.names - ({HEAD} if config.tie_word_embeddings else set())))
        if unlike:
            raise UserError(f"The parts do not make up the model: '{unlike[0]}' is missing or has no place in it.")
        folder.finish(config, tokenizer)
        return folder.numbers


def _renamed(name: str) -> str:
    return "model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name


def _image_token(tokenizer: Any, size: int) -> tuple[int, int]:
    """The id of the token that stands for a patch, and how many embeddings there are with it."""
    known = tokenizer.get_vocab()
    for token in IMAGE_TOKENS:
        if token in known and known[token] < size:
            return int(known[token]), size
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKENS[0]]})
    found = int(tokenizer.get_vocab()[IMAGE_TOKENS[0]])
    return found, max(size, found + 1)


def _longer(weight: Tensor, rows: int) -> Tensor:
    if rows <= len(weight):
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _projector(config: Any, kind: str, seed: int) -> dict[str, Tensor]:
    """Two maps drawn at the address (seed, "weights", name)."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    with torch.random.fork_rng(devices=[]):
        projector = LlavaMultiModalProjector(config)
    draw_weights(projector, seed)
    dtype: torch.dtype = getattr(torch, kind)
    return {f"model.multi_modal_projector.{name}": value.to(dtype) for name, value in projector.state_dict().items()}
