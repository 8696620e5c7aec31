"""Adapters in peft's form on disk: low-rank factors read module by module, without the backbone; and written back.

Only what is exact is read: plain factors `scale * B A` with any rank and alpha per module, alpha / sqrt(r) scaling
included. Anything that changes the meaning of the factors is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.lowrank.deltas import Delta

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A, B, C = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
REFUSED = {
    "use_dora": "a magnitude beside the factors (DoRA)",
    "lora_bias": "an offset beside the factors",
    "use_qalora": "quantised groups of inputs",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "tokens that switch it on",
    "arrow_config": "a router",
}
"""Options of peft under which factors alone are not the adapter."""


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter. `modules` are paths in the backbone, sorted; `delta(module)` reads two tensors and no more."""

    path: Path
    name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, int, int]]  # module -> (d_out, rank, d_in)
    extra: tuple[str, ...]  # whole tensors that were trained beside the factors, for example a head
    dtype: torch.dtype
    offsets: frozenset[str] = frozenset()  # keys of offsets beside the factors

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def backbone(self) -> str:
        """What it was trained on, as its configuration says."""
        return str(self.config.get("base_model_name_or_path") or "")

    @cached_property
    def rank(self) -> int:
        return max(rank for _, rank, _ in self.shapes.values())

    def scale(self, module: str) -> float:
        """alpha / r of a module, or alpha / sqrt(r) with rank-stabilised scaling; r is the rank its tensors have."""
        rank = self.shapes[module][1]
        alpha = float(_by_pattern(self.config.get("alpha_pattern") or {}, module, self.config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def delta(self, module: str) -> Delta:
        up, down = self.tensor(PREFIX + module + B), self.tensor(PREFIX + module + A)
        try:
            return Delta(up, down, self.scale(module), name=f"{self.name}: {module}")
        except UserError as error:
            raise UserError(f"{self.path}: {error} `merge --drop-bad` leaves such adapters out.") from None

    def offset(self, module: str) -> Tensor | None:
        """What the adapter adds to a module's output whatever it reads, (d_out,); None where that is nothing."""
        key = PREFIX + module + C
        return self.scale(module) * self.tensor(key) if key in self.offsets else None

    def tensor(self, key: str) -> Tensor:
        with safe_open(str(self.path / WEIGHTS), framework="pt") as file:
            found: Tensor = file.get_tensor(key)
        return found


def open_adapter(path: Path, name: str | None = None, *, offsets: bool = False) -> AdapterFolder:
    """Reads the configuration and the header of the weights. Raises `UserError` for whatever is not plain factors.
    offsets: those beside the factors (`lora_bias`) are read too."""
    config = _config(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path / CONFIG} describes an adapter of type '{kind}'; only LORA can be merged.")
    for option, what in REFUSED.items():
        if config.get(option) and not (offsets and option == "lora_bias"):
            raise UserError(f"{path / CONFIG} has {option}: the adapter holds {what}, which would be lost.")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path / CONFIG} trains biases (bias: {config['bias']}), which merging would lose.")
    file = path / WEIGHTS
    if not file.is_file():
        hint = (
            f" Its weights are a pickle ({PICKLE}); save it again as safetensors." if (path / PICKLE).exists() else ""
        )
        raise UserError(f"{path} has no {WEIGHTS}.{hint}")
    try:
        with safe_open(str(file), framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  (no mapping)
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            dtypes = {part.get_dtype() for part in slices.values()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}.") from None
    beside = frozenset(key for key in shapes if key.endswith(C)) if offsets else frozenset()
    modules, extra = _modules(path, {key: shape for key, shape in shapes.items() if key not in beside})
    for key in sorted(beside):
        module = key.removeprefix(PREFIX).removesuffix(C)
        if module not in modules or shapes[key] != modules[module][:1]:
            raise UserError(f"{file} holds '{key}' of shape {shapes[key]}, which fits no factors there.")
    precision = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if strange := sorted(dtypes - set(precision)):
        raise UserError(f"{file} holds {strange[0]} numbers; only floating-point factors can be merged exactly.")
    widest = max((precision[dtype] for dtype in dtypes), key=lambda dtype: dtype.itemsize)
    return AdapterFolder(path, name or path.name, config, modules, extra, widest, beside)


def _config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give folders that peft has saved.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} has no {CONFIG}, so it is no adapter that peft has saved.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no JSON object.")
    return config


def _modules(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, int, int]], tuple[str, ...]]:
    """Pairs A with B; what is neither is an extra tensor, or refused when it belongs to other kinds of factors."""
    found, extra = {}, []
    for key in sorted(shapes):
        if "lora_embedding" in key:
            raise UserError(f"{path / WEIGHTS} adapts an embedding ('{key}'); only linear maps can be merged.")
        if key.endswith(A):
            module = key[: -len(A)].removeprefix(PREFIX)
            partner = key[: -len(A)] + B
            if partner not in shapes:
                raise UserError(f"{path / WEIGHTS} holds '{key}' without '{partner}'; the file is incomplete.")
            down, up = shapes[key], shapes[partner]
            if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
                raise UserError(
                    f"{path / WEIGHTS}: the factors of '{module}' are {up} and {down}; they must be (d_out, r) and "
                    "(r, d_in)."
                )
            found[module] = (up[0], up[1], down[1])
        elif not key.endswith(B):
            extra.append(key)
    if not found:
        raise UserError(f"{path / WEIGHTS} holds no low-rank factors.")
    return found, tuple(extra)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's rule: a pattern is a module's path, or a regular expression for the end of it; the first match counts."""
    import re

    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def agree(adapters: Sequence[AdapterFolder]) -> None:
    """Raises `UserError`, naming both, when two adapters do not adapt the same maps of the same backbone."""
    first = adapters[0]
    for other in adapters[1:]:
        if first.backbone != other.backbone and first.backbone and other.backbone:
            raise UserError(
                f"{first.path} was trained on '{first.backbone}' and {other.path} on '{other.backbone}'; only adapters "
                "of one backbone can be merged."
            )
        differing = sorted(set(first.modules) ^ set(other.modules))
        if differing:
            holder, lacking = (first, other) if differing[0] in first.shapes else (other, first)
            raise UserError(
                f"{holder.path} adapts '{differing[0]}' and {lacking.path} does not "
                f"({len(differing)} modules differ); adapters of the same modules can be merged."
            )
        for module, (d_out, _, d_in) in first.shapes.items():
            theirs = other.shapes[module]
            if (d_out, d_in) != (theirs[0], theirs[2]):
                raise UserError(
                    f"'{module}' is {d_out} x {d_in} in {first.path} and {theirs[0]} x {theirs[2]} in {other.path}."
                )


def save_adapter(
    folder: Path, factors: Mapping[str, Delta], like: AdapterFolder, extra: Mapping[str, Tensor] | None = None
) -> None:
    """Writes factors (module -> delta) as an adapter that `PeftModel.from_pretrained` loads; modules may differ in rank
    and scale. `like` says for which backbone and task."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = dict(extra or {})
    ranks, alphas = {}, {}
    for module, delta in factors.items():
        tensors[PREFIX + module + A] = delta.down.to(like.dtype).contiguous()
        tensors[PREFIX + module + B] = delta.up.to(like.dtype).contiguous()
        ranks[module], alphas[module] = delta.rank, delta.scale * delta.rank
    rank, alpha = max(ranks.values()), max(alphas.values())
    config = {
        key: value
        for key, value in like.config.items()
        if key not in ("rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "eva_config", "loftq_config")
    }
    config |= {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: _whole(value) for module, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
