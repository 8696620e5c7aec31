"""Pictures to tensors, as CLIP towers and ViTs want them.

A picture is padded to a square with the mean colour, resized and, per batch, normalised. What is kept, on
disk, is the resized picture in bytes: a quarter of floats, and normalising a batch takes microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pfl_platform.data import Picture
from pfl_platform.store.scratch import OVERHEAD, Scratch

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MOST = 1 << 15
"""Most pictures that one reader keeps, however small they are."""


class PictureReader:
    """Reads pictures for a tower with square inputs of `size` pixels cut into patches of `patch` pixels.

    mean, std: of the three channels, in units of 255. resample: how pictures are resized, as PIL counts: 2 bilinear,
    3 bicubic. cache_bytes: disk for resized pictures, by picture key.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        *,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resample: int = 3,
        cache_bytes: int = 64 << 20,
    ) -> None:
        self.size = size
        self.patch = patch
        self.about = {"size": size, "mean": [*mean], "std": [*std], "resample": resample}
        """What decides the pixels beside the picture."""
        self.resample = resample
        self.fill = tuple(int(channel * 255) for channel in mean)
        self._scale = (1.0 / (255.0 * torch.tensor(std))).reshape(1, 3, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).reshape(1, 3, 1, 1)
        self._values = 3 * size * size
        most = min(cache_bytes // self._values, MOST)
        self._cache = Scratch(2 * most, most * (self._values + OVERHEAD))

    @property
    def tokens(self) -> int:
        """Image tokens of one picture: one per patch."""
        return (self.size // self.patch) ** 2

    def resized(self, picture: Picture) -> Tensor:
        """One picture, uint8 (3, size, size), from the cache when it was read before."""
        key = picture.key.encode("utf-8", "surrogatepass")
        found = self._cache.get(key)
        if found is not None:
            return torch.frombuffer(found, dtype=torch.uint8).reshape(3, self.size, self.size)
        made = self._read(picture.load())
        self._cache.put(key, made.numpy().data.cast("B", (self._values,)))
        return made

    def batch(self, pictures: Sequence[Picture]) -> Tensor:
        """Normalised pictures, float32 (pictures, 3, size, size)."""
        stacked = torch.stack([self.resized(picture) for picture in pictures])
        return stacked.to(torch.float32).mul_(self._scale).sub_(self._shift)

    def _read(self, image: Image) -> Tensor:
        from PIL import Image as images

        if image.mode != "RGB":
            image = image.convert("RGB")
        side = max(image.size)
        if image.size != (side, side):
            square = images.new("RGB", (side, side), self.fill)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        if side != self.size:
            image = image.resize((self.size, self.size), images.Resampling(self.resample))
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
