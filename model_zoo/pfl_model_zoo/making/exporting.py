"""A model and what a run has trained of it, as one folder in the form of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from pfl_model_zoo.families.models import quiet, read_tokenizer
from pfl_model_zoo.making.folder import new_folder
from pfl_platform.adapters.folders import CONFIG, PREFIX, WEIGHTS, A, B
from pfl_platform.errors import UserError

PIECE = 2 << 30
"""Bytes of weights in one file, about."""


def export(adapter: Path, source: Path, out: Path) -> int:
    """Writes the model of `source` with an adapter's modules in place of its own and its low-rank maps added, in the
    precision of the source; returns how many params it has. adapter: a folder in peft's form."""
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{adapter} holds no {WEIGHTS}; the run has not ended.")
    with quiet():
        model: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto", local_files_only=True)
    lay(model, load_file(adapter / WEIGHTS))
    with new_folder(out) as folder:
        for piece in _pieces(model):
            folder.add(piece)
        folder.finish(model.config, read_tokenizer(source, source.name))
        for name in ("generation_config.json", "preprocessor_config.json", "processor_config.json"):
            if (source / name).is_file():
                shutil.copy(source / name, folder.path)
        shutil.copy(adapter / CONFIG, folder.path / "trained.json")
        return folder.numbers


@torch.no_grad()
def lay(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Changes a model's weights in place; low-rank maps have alpha = rank, as runs save them."""
    live = dict(model.named_parameters(remove_duplicate=False))
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(A):
            weight = live[name.removesuffix(A) + ".weight"]
            delta = tensors[key.removesuffix(A) + B].float() @ value.float()
            weight.copy_(weight.float() + delta.to(weight.device))
        elif not name.endswith(B):
            live[name].copy_(value)


def _pieces(model: Any) -> Iterator[dict[str, Tensor]]:
    """The weights by name, tied ones once."""
    piece: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        if piece and sum(each.nbytes for each in piece.values()) + value.nbytes > PIECE:
            yield piece
            piece = {}
        piece[name] = value
    yield piece
