"""Models from files or at random, frozen; what all families share."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pfl_model_zoo.cards import LINEARS, PACKAGE, ZooCard
from pfl_model_zoo.codec import ChatCodec, Specials
from pfl_model_zoo.families.files import describing_files, digest_of, locate, weight_files
from pfl_model_zoo.families.sight import sight_of
from pfl_model_zoo.options import LoadOptions
from pfl_model_zoo.pictures import PictureReader
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng

logging: Any = transformers_logging

LONGEST_ROW = 4096
"""Rows are cut here even where a model could read on, unless the option max_length says otherwise."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from writing progress bars and load reports over the run's own display."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def device_of(options: LoadOptions) -> torch.device:
    """The device that the options name."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise UserError(f"'{options.device}' is no device; use cpu, cuda, cuda:0, auto or meta.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"The device '{options.device}' was asked for, but this machine has no usable GPU; use cpu.")
    return device


def dtype_of(options: LoadOptions) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype


def from_files(options: LoadOptions) -> bool:
    """Whether weights are read; they are not for random models and where only shapes are wanted."""
    return options.init is None and options.device != "meta"


def definition(card: ZooCard, options: LoadOptions) -> tuple[PreTrainedConfig, Path]:
    """Configuration and tokenizer folder of a model whose weights are not read."""
    if options.path is not None:
        folder = locate(card, options)
        return config_in(folder, card), folder
    fields = dict(card.config)
    config: PreTrainedConfig = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return config, PACKAGE / card.tokenizer


def config_in(folder: Path, card: ZooCard) -> PreTrainedConfig:
    """The configuration in a folder; it must be of the card's size, so that a wrong folder is noticed."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The config.json in {folder} of backbone '{card.name}' cannot be read: {reason}") from None
    check_size(config, folder, card)
    return config


def check_type(config: PreTrainedConfig, card: ZooCard, known: Collection[str]) -> str:
    """Which of the known kinds of model the files are of; any other is a `UserError`."""
    if config.model_type not in known:
        raise UserError(f"The files of backbone '{card.name}' are of a '{config.model_type}', which it cannot read.")
    return str(config.model_type)


def check_size(config: PreTrainedConfig, folder: Path, card: ZooCard) -> None:
    layers, width = size_of(config)
    if (layers, width) != (card.layers, card.hidden_size):
        raise UserError(
            f"The folder {folder} holds a model with {layers} layers of width {width}, but "
            f"'{card.name}' has {card.layers} of width {card.hidden_size}; name the right folder or backbone."
        )


def size_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Layers and width; the layers of an encoder-decoder are those of both together."""
    text = config.get_text_config()
    more = text.num_decoder_layers if text.is_encoder_decoder else 0
    return text.num_hidden_layers + more, text.hidden_size


def read_model(kind: Any, folder: Path, card: ZooCard, options: LoadOptions) -> PreTrainedModel:
    """A model from its files, in the precision and with the attention of the options."""
    model, report = _read(kind, folder, card, options)
    require_complete(report["missing_keys"], folder, card)
    return model


def read_classifier(
    kind: Any, folder: Path, card: ZooCard, options: LoadOptions, heads: tuple[str, ...], classes: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A model with so many classes, and which of its heads (paths) the files lack, or have in another size."""
    model, report = _read(kind, folder, card, options, num_labels=classes, ignore_mismatched_sizes=True)
    unlike = [str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]]
    absent = {*report["missing_keys"], *unlike}
    fresh = tuple(path for path in heads if any(key.startswith(f"{path}.") for key in absent))
    require_complete({key for key in absent if not key.startswith(tuple(f"{path}." for path in fresh))}, folder, card)
    return model, fresh


def _read(
    kind: Any, folder: Path, card: ZooCard, options: LoadOptions, **more: Any
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    files = weight_files(folder, card.name, allow_pickle=options.allow_pickle)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # what the files lack is drawn anew, and replaced or refused
            model, report = kind.from_pretrained(
                folder,
                dtype=dtype_of(options),
                attn_implementation=options.attention,
                local_files_only=True,
                use_safetensors=files[0].suffix == ".safetensors",
                output_loading_info=True,
                **more,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The weights of backbone '{card.name}' in {folder} cannot be read: {reason}") from None
    return model, report


def require_complete(missing: Any, folder: Path, card: ZooCard) -> None:
    if missing:
        raise UserError(
            f"The weights of backbone '{card.name}' in {folder} lack {len(missing)} tensors, "
            f"for example '{min(missing)}'; the files are incomplete or of another model."
        )


def random_model(
    build: Callable[..., PreTrainedModel], config: PreTrainedConfig, options: LoadOptions
) -> PreTrainedModel:
    """A model of this shape with weights drawn at the address (init, "weights", parameter), or with shapes alone."""
    where = torch.device("meta" if options.device == "meta" else "cpu")
    # The constructor draws from the global generator; what it draws is thrown away and the generator put back.
    with torch.random.fork_rng(devices=[]), where:
        model = build(config, dtype=dtype_of(options), attn_implementation=options.attention)
    if options.init is not None and options.device != "meta":
        draw_weights(model, options.init)
    return model


def draw_weights(model: nn.Module, seed: int) -> None:
    """Norms to one, biases to zero, embeddings and linear maps normal with deviation 1 / sqrt(inputs).

    The same seed gives the same values on every machine, in whatever order modules are visited.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            norm = "norm" in type(module).__name__.lower()
            for name, value in module.named_parameters(prefix=path, recurse=False):
                if name.endswith("bias"):
                    value.zero_()
                elif norm:
                    value.fill_(1.0)
                else:
                    fan_in = value[0].numel() if value.ndim > 1 else value.numel()
                    noise = torch.randn(value.shape, generator=torch_rng(seed, "weights", name))
                    value.copy_(noise / fan_in**0.5)


def read_tokenizer(folder: Path, name: str, *, generates: bool = True) -> Any:
    """The fast tokenizer of a folder. A backbone that generates needs an end token, another one a padding token."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The tokenizer of backbone '{name}' in {folder} cannot be read: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"The tokenizer of backbone '{name}' in {folder} has no tokenizer.json, which spans need.")
    if generates and tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of backbone '{name}' in {folder} names no end token (eos_token).")
    if not generates and tokenizer.pad_token_id is None:
        raise UserError(f"The tokenizer of backbone '{name}' in {folder} names no padding token (pad_token).")
    return tokenizer


def specials_of(tokenizer: Any, folder: Path, image: int | None) -> Specials:
    """Ids of special tokens; every end token of the generation configuration stops an answer."""
    end = int(tokenizer.eos_token_id)
    stop = {end}
    path = folder / "generation_config.json"
    if path.is_file():
        extra = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        stop.update([] if extra is None else [extra] if isinstance(extra, int) else extra)
    pad = tokenizer.pad_token_id
    return Specials(
        pad=end if pad is None else int(pad),
        end=end,
        stop=tuple(sorted(stop)),
        bos=None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id),
        image=image,
    )


def assemble(
    card: ZooCard,
    options: LoadOptions,
    model: PreTrainedModel,
    tokenizer: Any,
    specials: Specials,
    reader: PictureReader | None,
    *,
    decoder: str,
    digest: str,
) -> Backbone:
    """A frozen backbone from its parts. `decoder`: path of the module that holds `layers` and `norm`."""
    frozen(model, options)
    text = model.config.get_text_config()
    longest = options.max_length or min(int(text.max_position_embeddings), LONGEST_ROW)
    codec = ChatCodec(
        card.name, tokenizer.backend_tokenizer, specials, reader, max_length=longest, cache_rows=options.cache_rows
    )
    blocks = tuple(f"{decoder}.layers.{index}" for index in range(text.num_hidden_layers))
    return Backbone(
        card=card.to_card(),
        model=model,
        codec=codec,
        blocks=blocks,
        linears=LINEARS,
        final_norm=f"{decoder}.norm",
        head="lm_head",
        last_linear=f"{blocks[-1]}.mlp.down_proj",
        digest=digest,
        sight=None if reader is None else sight_of(model, codec, digest),
    )


def frozen(model: PreTrainedModel, options: LoadOptions) -> PreTrainedModel:
    """The model in evaluation mode, without gradients, on the device of the options."""
    module: nn.Module = model
    module.eval()
    module.requires_grad_(False)
    if options.device != "meta":
        module.to(device_of(options))
    return model


def digest_of_files(folder: Path, card: ZooCard, options: LoadOptions, *also: str) -> str:
    """Names what was read from a folder, and whatever else decides the model."""
    files = weight_files(folder, card.name, allow_pickle=options.allow_pickle)
    return digest_of([*files, *describing_files(folder)], *also)


def digest_of_random(config: PreTrainedConfig, folder: Path, options: LoadOptions) -> str:
    """Names a random model (or a shape) by its seed, configuration and tokenizer."""
    fields: Mapping[str, Any] = config.to_dict()
    shape = json.dumps(fields, sort_keys=True, default=str)
    return digest_of([path for path in describing_files(folder) if "tokenizer" in path.name], str(options.init), shape)
