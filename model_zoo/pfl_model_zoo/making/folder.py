"""A folder in the form of transformers, written piece by piece: a file of weights per piece, and the index of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.store.atomic import temporary_name

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }}"
    "{% else %} ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The frame of `pfl_model_zoo.chat`, for those who use the model elsewhere."""


class NewFolder:
    """Weights by name in files that are written once. One piece is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where: dict[str, str] = {}
        self._bytes = 0
        self.numbers = 0
        """Params that were written."""

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """A piece. A name that was there already is a `ValueError`."""
        if twice := next((name for name in tensors if name in self._where), None):
            raise ValueError(f"'{twice}' is there twice")
        if not tensors:
            return
        file = f"model-{len(set(self._where.values())) + 1:05d}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, self.path / file, {"format": "pt"})
        self._where.update(dict.fromkeys(tensors, file))
        self._bytes += sum(value.nbytes for value in tensors.values())
        self.numbers += sum(value.numel() for value in tensors.values())

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._where)

    def finish(self, config: Any, tokenizer: Any) -> None:
        """Configuration, tokenizer, and the index of the pieces."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(self._where.items()))}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        config.save_pretrained(self.path)
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(self.path)


def refuse_used(out: Path) -> None:
    """Raises `UserError` where something is already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"The folder {out} is not empty; name a new one with --out.")


@contextmanager
def new_folder(out: Path) -> Iterator[NewFolder]:
    """A folder that is there when all of it was written, and not at all otherwise; `out` must be new or empty."""
    refuse_used(out)
    temporary = temporary_name(out.absolute())
    temporary.mkdir(parents=True)
    try:
        yield NewFolder(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def pieces(path: Path, named: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors of one file under new names; those that `named` gives None are left out. Values are read from the
    file as they are needed."""
    try:
        with safe_open(path, framework="pt") as file:
            names = {name: new for name in file.keys() if (new := named(name)) is not None}  # noqa: SIM118
            return {new: file.get_tensor(name) for name, new in names.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights in {path} cannot be read: {error}.") from None


def names_in(config: Any) -> tuple[str, ...]:
    """Names of the tensors that a model of this configuration has."""
    from transformers import LlavaForConditionalGeneration

    make: Any = LlavaForConditionalGeneration._from_config
    with torch.device("meta"):
        return tuple(make(config).state_dict())


def existing(path: Path, what: str) -> Path:
    """A folder with a config.json; a hub name is none."""
    if not (path / "config.json").is_file():
        hint = "a hub name is not looked up, so download it first and give " if path.parts[:1] != ("/",) else "give "
        raise UserError(f"The {what} {path} is no folder with a config.json; {hint}the folder that it lies in.")
    return path


def dtype_name(tensors: Mapping[str, Tensor]) -> str:
    """The precision of most values, as options spell it."""
    sizes: dict[torch.dtype, int] = {}
    for value in tensors.values():
        sizes[value.dtype] = sizes.get(value.dtype, 0) + value.numel()
    name = str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
