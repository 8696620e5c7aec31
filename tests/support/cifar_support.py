"""CIFAR-100 in miniature, in the official binary form: pictures of one colour per class, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FINE, COARSE = 100, 20


def records(per_class: int, seed: int) -> bytes:
    """So many pictures of each fine class, in random order; fine class c belongs to coarse class c // 5."""
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.repeat(np.arange(FINE), per_class))
    colours = np.random.default_rng(0).integers(30, 225, (FINE, 3))
    pixels = colours[fine][:, :, None] + rng.integers(-30, 30, (len(fine), 3, 1024))
    labels = np.stack([fine // (FINE // COARSE), fine], axis=1)
    whole = np.concatenate([labels, pixels.reshape(len(fine), -1)], axis=1)
    return whole.astype(np.uint8).tobytes()


def write_cifar(root: Path, train: int = 4, test: int = 2) -> Path:
    """Writes `cifar-100-binary` with so many pictures per class; gives its folder."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(records(train, 1))
    (folder / "test.bin").write_bytes(records(test, 2))
    for kind, count in (("fine", FINE), ("coarse", COARSE)):
        names = "".join(f"{kind}_kind_{number}\n" for number in range(count))
        (folder / f"{kind}_label_names.txt").write_text(names + "\n", encoding="utf-8")
    return folder
