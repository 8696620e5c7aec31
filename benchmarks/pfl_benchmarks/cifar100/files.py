"""The official binary files: records of a coarse label, a fine label and 3 x 32 x 32 bytes of pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
RECORD = 2 + 3 * SIDE * SIDE
BINARY = "cifar-100-binary"
PICKLED = "cifar-100-python"
COUNTS = {"coarse": 20, "fine": 100}
"""Kinds of labels, in the order in which they stand in a record, and how many classes each has."""


@dataclass(frozen=True)
class Pictures:
    """One file. records: uint8 (pictures, 3074), read from the disk as they are needed."""

    path: Path
    records: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.records)

    def labels(self, kind: str) -> NDArray[np.int64]:
        """Class numbers of a kind, `coarse` or `fine`: (pictures,)."""
        return self.records[:, list(COUNTS).index(kind)].astype(np.int64)

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each picture's pixels, the first 32 hexadecimal digits."""
        return [hashlib.sha256(row[2:].tobytes()).hexdigest()[:32] for row in self.records]


@dataclass(frozen=True, slots=True)
class CifarPicture:
    """A picture of a file, by its place."""

    source: Pictures
    place: int

    @property
    def key(self) -> str:
        return f"cifar:{self.source.digests[self.place]}"

    def load(self) -> Image:
        """32 x 32, RGB."""
        from PIL import Image as images

        planes = self.source.records[self.place, 2:].reshape(3, SIDE, SIDE)
        return images.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)), "RGB")


def find_folder(root: Path) -> Path:
    """The folder with the binary files: `cifar-100-binary` in the root, or the root itself. Raises `UserError` where
    there is none; pickled files are named, and not read."""
    for folder in (root / BINARY, root):
        if (folder / "train.bin").is_file() or (folder.name == BINARY and folder.is_dir()):
            return folder
    if (root / PICKLED).is_dir() or root.name == PICKLED:
        raise UserError(
            f"{root} holds CIFAR-100 in pickled files only, which can run foreign code and are never read; "
            f"unpack the binary version ({BINARY}) of the official page there."
        )
    raise UserError(f"{root} has no folder '{BINARY}'; unpack the binary version of CIFAR-100 there.")


def read_pictures(path: Path) -> Pictures:
    """One file of records; a missing, truncated or impossible one is a `UserError`."""
    try:
        size = path.stat().st_size
        if size == 0 or size % RECORD:
            raise UserError(
                f"{path} has {size} bytes, which are not whole records of {RECORD}; the file is truncated or another."
            )
        records = np.memmap(path, dtype=np.uint8, mode="r", shape=(size // RECORD, RECORD))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    found = Pictures(path, records)
    for kind, count in COUNTS.items():
        wrong = np.flatnonzero(found.labels(kind) >= count)
        if len(wrong):
            label = int(found.labels(kind)[wrong[0]])
            raise UserError(f"{path}, record {wrong[0] + 1}: there is no {kind} class {label}; there are {count}.")
    return found


def read_names(folder: Path, kind: str) -> tuple[str, ...]:
    """The names of the classes of a kind, with spaces for underscores."""
    path, count = folder / f"{kind}_label_names.txt", COUNTS[kind]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    names = tuple(line.strip().replace("_", " ") for line in lines if line.strip())
    if len(set(names)) != count or len(names) != count:
        raise UserError(f"{path} has {len(set(names))} different names where there should be {count}.")
    return names
