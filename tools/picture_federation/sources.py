"""Official files of Fashion-MNIST, MNIST, Omniglot and CIFAR as pictures. Pickle is never read."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfl_platform.errors import UserError

SIDE = 64
"""Longest side of a stored picture, in pixels; smaller ones keep their size."""

GARMENTS = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
THINGS: Mapping[str, tuple[str, ...]] = {  # kinds of CIFAR-100, from its coarse classes
    "fish": ("fish",),
    "flower": ("flowers",),
    "fruit": ("fruit_and_vegetables",),
    "furniture": ("household_furniture",),
    "insect": ("insects",),
    "landscape": ("large_natural_outdoor_scenes",),
    "mammal": ("small_mammals", "medium_mammals"),
    "reptile": ("reptiles",),
    "tree": ("trees",),
    "vehicle": ("vehicles_1", "vehicles_2"),
}


@dataclass(frozen=True)
class Item:
    """A picture: its kind, which most questions ask for; its detail (a character, else the kind); its pixels."""

    kind: str
    detail: str
    pixels: NDArray[np.uint8]


Source = Mapping[str, Sequence[Item]]
"""Split -> its pictures."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes, gzipped: big-endian header with the sizes, then the values."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def fashion_mnist(data: Path) -> Source:
    """Train pictures are cut into train and public, test pictures stay test."""
    folder = data / "fashion_mnist" / "data" / "fashion"
    items = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        labels, pixels = (
            read_idx(folder / f"{name}-labels-idx1-ubyte.gz"),
            read_idx(folder / f"{name}-images-idx3-ubyte.gz"),
        )
        items[split] = [
            Item(GARMENTS[label], GARMENTS[label], image) for label, image in zip(labels, pixels, strict=True)
        ]
    return parted(items["train"], {"train": 3, "public": 1}) | {"test": items["test"]}


def mnist(data: Path) -> Source:
    """The test file only: three fifths of it train, one test, one public."""
    folder = data / "mnist"
    labels, pixels = read_idx(folder / "t10k-labels-idx1-ubyte.gz"), read_idx(folder / "t10k-images-idx3-ubyte.gz")
    items = [Item(str(label), str(label), image) for label, image in zip(labels, pixels, strict=True)]
    return parted(items, {"train": 3, "test": 1, "public": 1})


def omniglot(data: Path) -> Source:
    """Of each character's twenty drawings, 11 are train, 5 test and 4 public. Kinds are alphabets."""
    found: dict[str, Item] = {}
    for archive in sorted((data / "omniglot" / "python").glob("images_background_small*.zip")):
        with zipfile.ZipFile(archive) as files:
            for name in sorted(name for name in files.namelist() if name.endswith(".png")):
                _, alphabet, character, drawing = name.split("/")
                with Image.open(io.BytesIO(files.read(name))) as image:
                    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
                kind = alphabet.split("_(")[0].replace("_", " ")
                found[f"{kind}/{character}/{drawing}"] = Item(kind, f"{kind}/{character}", np.asarray(small))
    if not found:
        raise UserError(f"{data / 'omniglot' / 'python'} has no images_background_small*.zip.")
    by_character: dict[str, list[Item]] = {}
    for name in sorted(found):
        by_character.setdefault(found[name].detail, []).append(found[name])
    cuts = {"train": slice(0, 11), "test": slice(11, 16), "public": slice(16, 20)}
    return {split: [item for items in by_character.values() for item in items[cut]] for split, cut in cuts.items()}


def cifar(folder: Path) -> Source:
    """CIFAR-100 in its binary form, or CIFAR-10 as JPEG files by kind; train pictures are cut into train and public."""
    binary, jpegs = folder / "cifar-100-binary", folder / "dataset" / "CIFAR10" / "images"
    if binary.is_dir():
        names = (binary / "coarse_label_names.txt").read_text(encoding="utf-8").split()
        kind_of = {coarse: kind for kind, group in THINGS.items() for coarse in group}
        items = {}
        for split in ("train", "test"):
            records = np.frombuffer((binary / f"{split}.bin").read_bytes(), np.uint8).reshape(-1, 3074)
            kinds = [kind_of.get(names[record[0]]) for record in records]
            images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            items[split] = [Item(kind, kind, image) for kind, image in zip(kinds, images, strict=True) if kind]
    elif jpegs.is_dir():
        items = {split: [jpeg(path) for path in sorted((jpegs / split).glob("*/*.jpg"))] for split in ("train", "test")}
    else:
        raise UserError(f"{folder} has neither 'cifar-100-binary' nor 'dataset/CIFAR10/images'.")
    return parted(items["train"], {"train": 4, "public": 1}) | {"test": items["test"]}


def jpeg(path: Path) -> Item:
    with Image.open(path) as image:
        return Item(path.parent.name, path.parent.name, np.asarray(image.convert("RGB")))


def parted(items: Sequence[Item], shares: Mapping[str, int]) -> dict[str, Sequence[Item]]:
    """Items to splits in proportion, kind by kind, in file order."""
    turns = [split for split, share in shares.items() for _ in range(share)]
    seen: dict[str, int] = {}
    parts: dict[str, list[Item]] = {split: [] for split in shares}
    for item in items:
        seen[item.kind] = seen.get(item.kind, -1) + 1
        parts[turns[seen[item.kind] % len(turns)]].append(item)
    return dict(parts)
