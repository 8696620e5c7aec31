"""Weights in the layout of the original LLaVA code, as most federated checkpoints are published.

There the decoder's own configuration carries the vision settings (`mm_...`), tensors have other names, and the frozen
CLIP tower is often left out because it is the public one; then it comes from its own folder or hub cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from pfl_model_zoo.cards import ZooCard
from pfl_model_zoo.families.files import describing_files, digest_of, from_hub, weight_files
from pfl_model_zoo.families.models import check_size, dtype_of, quiet, random_model, require_complete
from pfl_model_zoo.options import LoadOptions
from pfl_platform.errors import UserError

RENAMED = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
"""Prefixes there and here, first match first."""


def is_original(folder: Path) -> bool:
    """Whether a folder's configuration is of the original code (`llava_llama`, `llava_qwen2` ...)."""
    return str(_raw(folder).get("model_type", "")).startswith("llava_")


def renamed(key: str) -> str:
    """A tensor's name in transformers' layout.

    >>> renamed("model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    """
    for old, new in RENAMED:
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def read(folder: Path, card: ZooCard, options: LoadOptions) -> tuple[PreTrainedModel, str]:
    """The model and the digest of everything that was read."""
    files = weight_files(folder, card.name, allow_pickle=False)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(_tensors(path, card))
    raw = _raw(folder)
    read_files = [*files, *describing_files(folder)]
    tower_digest = ""
    if any(key.startswith("model.vision_tower.") for key in tensors) and "vision_config" in raw:
        vision = raw["vision_config"]
    else:
        tower_folder = _tower_folder(raw, card, options)
        tower, vision = _tower(tower_folder, options)
        tensors |= {f"model.vision_tower.{key}": value for key, value in tower.items()}
        tower_digest = digest_of(weight_files(tower_folder, card.name, allow_pickle=options.allow_pickle))
    config = llava_config(raw, vision, card)
    check_size(config, folder, card)
    model = random_model(LlavaForConditionalGeneration._from_config, config, options)
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["model.language_model.embed_tokens.weight"])
    missing = [key for key in model.load_state_dict(tensors, strict=False).missing_keys if "inv_freq" not in key]
    require_complete(missing, folder, card)
    return model, digest_of(read_files, tower_digest)


def llava_config(raw: dict[str, Any], vision: dict[str, Any], card: ZooCard) -> LlavaConfig:
    """Transformers' configuration from the original one and that of the tower."""
    projector = raw.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise UserError(
            f"The backbone '{card.name}' has a projector of type '{projector}'; only mlp2x_gelu is supported."
        )
    text = {key: value for key, value in raw.items() if not key.startswith("mm_")}
    text["model_type"] = "qwen2" if "qwen" in str(raw["model_type"]).lower() else "llama"
    for key in ("vision_config", "architectures", "auto_map"):
        text.pop(key, None)
    return LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config=text,
        vision_feature_layer=int(raw.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="default",
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def _raw(folder: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"The file {folder / 'config.json'} is not valid JSON: {error}.") from None
    return fields


def _tensors(path: Path, card: ZooCard) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {renamed(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"The weights of backbone '{card.name}' in {path} cannot be read: {error}") from None


def _tower_folder(raw: dict[str, Any], card: ZooCard, options: LoadOptions) -> Path:
    if options.vision_path is not None:
        if not (options.vision_path / "config.json").is_file():
            raise UserError(f"The vision tower's folder {options.vision_path} does not exist or has no config.json.")
        return options.vision_path
    source = raw.get("mm_vision_tower")
    if not source:
        raise UserError(
            f"The weights of backbone '{card.name}' have no vision tower; name its folder with vision_path."
        )
    return from_hub(f"{card.name}: vision tower", str(source), options)


def _tower(folder: Path, options: LoadOptions) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a CLIP vision tower and its configuration."""
    files = weight_files(folder, "vision tower", allow_pickle=options.allow_pickle)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with quiet(), torch.random.fork_rng(devices=[]):
        tower = CLIPVisionModel.from_pretrained(
            folder,
            config=getattr(config, "vision_config", config),
            dtype=dtype_of(options),
            local_files_only=True,
            use_safetensors=files[0].suffix == ".safetensors",
        )
    return dict(tower.state_dict()), dict(tower.config.to_dict())
