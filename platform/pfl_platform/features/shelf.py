"""Features of pictures under one backbone: from memory, from disk, or worked out.

How many pictures a pass has changes the last bits of what a matrix product makes of one of them. So pictures pass the
frozen part in passes of one size, whatever batch they stand in: one by one, or, where the stages are so small that
starting them takes longer than they do, in groups that are filled up. That alone makes features that were kept equal
to those that were not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfl_platform.backbones import Backbone, Sight
from pfl_platform.data import FilePicture, Picture
from pfl_platform.features.disk import Disk, digest
from pfl_platform.rng import torch_rng
from pfl_platform.store.layout import raw
from pfl_platform.store.pins import software
from pfl_platform.store.scratch import OVERHEAD, Scratch

MEMORY = 64 << 20
"""Bytes that a process keeps for itself where nobody says otherwise."""
TOGETHER, SMALL_STAGES = 32, 1 << 23
"""Pictures of a pass, and the number of params up to which stages are small."""
MOST = 1 << 16
"""Most pictures of one backbone that a process keeps for itself, however small their features are."""


def usual_folder() -> Path | None:
    """Where features lie on disk: `features` in `PFL_CACHE`, else in `.cache/pfl-platform` of the user's home."""
    try:
        return Path(os.environ.get("PFL_CACHE") or Path.home() / ".cache" / "pfl-platform") / "features"
    except RuntimeError:  # a user without a home, as in some containers
        return None


@dataclass
class Keeper:
    """Where a process keeps features, of all its backbones together.

    memory: bytes of each kind of features that the process has for itself, in a file without a name, which the system
    holds in memory while there is room: what a process holds does not grow with its clients. disk: bytes on disk of all
    kinds, in `folder`, for later runs too. Either may be 0.
    """

    memory: int = MEMORY
    disk: int = 0
    folder: Path | None = None
    _shelves: dict[str, Shelf] = field(default_factory=dict, init=False)

    def shelf(self, backbone: Backbone, depth: int) -> Shelf:
        """The features that the first `depth` stages of a backbone give."""
        if backbone.sight is None:
            raise ValueError(f"the backbone '{backbone.name}' has no stages whose results could be kept")
        about = decided_by(backbone, backbone.sight, depth)
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        if name not in self._shelves:
            disk = Disk(self.folder, name, about, self.disk) if self.disk and self.folder is not None else None
            self._shelves[name] = Shelf(backbone, backbone.sight, depth, self.memory, disk)
        return self._shelves[name]

    def flush(self) -> None:
        """Writes what is not on disk yet."""
        for shelf in self._shelves.values():
            shelf.flush()


def decided_by(backbone: Backbone, sight: Sight, depth: int) -> Mapping[str, Any]:
    """All but the picture that decides the bits of its features."""
    device = backbone.device
    return {
        "stages": list(sight.stages[:depth]),
        "content": sight.digest,
        "together": TOGETHER,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "processor": processor() if device.type == "cpu" else [],
        "versions": software(),
    }


INSTRUCTIONS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that tell libraries which instructions they may use."""


@cache
def processor() -> list[str]:
    """Which instructions this machine computes with: others round otherwise."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    told = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    return [platform.machine(), model, torch.backends.cpu.get_cpu_capability(), *told]


class Shelf:
    """Features that the first stages of one backbone give."""

    def __init__(self, backbone: Backbone, sight: Sight, depth: int, memory: int, disk: Disk | None) -> None:
        self._backbone = backbone
        self._sight = sight
        self._depth = depth
        self._budget = memory
        self._memory: Scratch | None = None
        self._form: tuple[torch.dtype, torch.Size] = (torch.float32, torch.Size())
        self._disk = disk
        self._together: int | None = None  # pictures of a pass
        self.computed = 0
        """How many pictures went through the stages."""

    def of(self, pictures: Sequence[Picture]) -> Tensor:
        """(pictures, ...), on the backbone's device, without gradient."""
        found: dict[str, Tensor] = {}
        missing: dict[str, tuple[Tensor, bytes | None]] = {}
        for picture in pictures:
            key = picture.key
            if key in found or key in missing:
                continue
            kept = self._kept(key)
            if kept is None:
                kept, pixels, content = self._looked_up(picture)
                if pixels is not None:
                    missing[key] = (pixels, content)
            if kept is not None:
                found[key] = kept
        for (key, (_, content)), values in zip(
            missing.items(), self._made([p for p, _ in missing.values()]), strict=True
        ):
            if content is not None and self._disk is not None:
                self._disk.put(content, values)
            self._keep(key, values)
            found[key] = values
        return torch.stack([found[picture.key] for picture in pictures]).to(self._backbone.device)

    def flush(self) -> None:
        """Writes what is not on disk yet."""
        if self._disk is not None:
            self._disk.flush()

    def _kept(self, key: str) -> Tensor | None:
        kept = None if self._memory is None else self._memory.get(key.encode("utf-8", "surrogatepass"))
        if kept is None:
            return None
        dtype, shape = self._form
        values: Tensor = torch.frombuffer(kept, dtype=dtype).reshape(shape)
        return values

    def _keep(self, key: str, values: Tensor) -> None:
        if self._memory is None:
            most = min(self._budget // (values.nbytes + OVERHEAD), MOST)
            self._form, self._memory = (values.dtype, values.shape), Scratch(2 * most, self._budget)
        self._memory.put(key.encode("utf-8", "surrogatepass"), raw(values))

    def _looked_up(self, picture: Picture) -> tuple[Tensor | None, Tensor | None, bytes | None]:
        """Features from disk; else the pixels, and the content under which features go there. The content is a file's
        bytes, or the pixels of a picture that is no file."""
        if self._disk is None:
            return None, self._sight.pixels(picture), None
        pixels = None
        if isinstance(picture, FilePicture):
            try:
                content = digest(picture.path.read_bytes())
            except OSError:
                return None, self._sight.pixels(picture), None  # which says what is wrong with the file
        else:
            pixels = self._sight.pixels(picture)
            content = digest(raw(pixels))
        found = self._disk.get(content)
        if found is not None:
            self._keep(picture.key, found)
            return found, None, None
        return None, self._sight.pixels(picture) if pixels is None else pixels, content

    @torch.no_grad()
    def _made(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """What the stages make of pictures (1, ...), on the CPU."""
        made: list[Tensor] = []
        if pixels and self._together is None:
            self._together = self._size_of_passes(pixels[0])
        size = self._together or 1
        for start in range(0, len(pixels), size):
            part = list(pixels[start : start + size])
            filled = part + [torch.zeros_like(part[0])] * (size - len(part))
            made += self._pass(torch.cat(filled))[: len(part)]
        self.computed += len(pixels)
        return made

    def _pass(self, pixels: Tensor) -> list[Tensor]:
        backbone = self._backbone
        return list(self._sight.run(backbone.model, pixels.to(backbone.device), 0, self._depth).cpu())

    def _size_of_passes(self, like: Tensor) -> int:
        """How many pictures go through small stages together. One, where it shows on random pictures that the place in
        a pass decides bits, too."""
        modules = [self._backbone.module(path) for path in self._sight.stages[: self._depth]]
        if sum(param.numel() for module in modules for param in module.parameters()) > SMALL_STAGES:
            return 1
        drawn = torch.rand(TOGETHER, *like.shape[1:], generator=torch_rng(0, "features", "probe"), dtype=like.dtype)
        straight, turned = self._pass(drawn), self._pass(drawn.roll(1, 0))
        return TOGETHER if all(map(torch.equal, straight, [*turned[1:], turned[0]])) else 1


def frozen_stages(sight: Sight, changed: Sequence[str]) -> int:
    """How many leading stages hold none of the modules at these paths.

    >>> class Two:
    ...     stages = ("eye", "nerve")
    >>> frozen_stages(Two(), ["brain.q"]), frozen_stages(Two(), ["nerve.up", "brain.q"]), frozen_stages(Two(), [""])
    (2, 1, 0)
    """
    for number, stage in enumerate(sight.stages):
        if any(_within(path, stage) or _within(stage, path) for path in changed):
            return number
    return len(sight.stages)


def _within(path: str, other: str) -> bool:
    return other in ("", path) or path.startswith(f"{other}.")
