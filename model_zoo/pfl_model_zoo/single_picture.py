"""One picture as a row, for backbones that see and do not read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfl_model_zoo.codec import NOWHERE
from pfl_model_zoo.pictures import PictureReader
from pfl_platform.backbones import Span
from pfl_platform.data import Sample
from pfl_platform.errors import UserError


class SinglePictureReader:
    """Reads a sample's picture; what is asked about it is not read. See `pfl_model_zoo.classes.RowReader`.

    positions: of a row, one per patch and the class token. They stand for no text, so their spans are (-1, -1).
    """

    pad = 0

    def __init__(self, name: str, pictures: PictureReader) -> None:
        self.name = name
        self.pictures = pictures
        self.positions = pictures.tokens + 1

    def read(self, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], Sequence[Sequence[Span]]]:
        """`pixel_values`, float32 (rows, 3, size, size), and `attention_mask`, ones, int64 (rows, positions). A sample
        without a picture, or with several, is a `UserError`."""
        for sample in samples:
            if len(sample.pictures) != 1:
                raise UserError(
                    f"Sample '{sample.id}' has {len(sample.pictures) or 'no'} pictures, but the backbone "
                    f"'{self.name}' reads exactly one and no text; choose another backbone."
                )
        pixels = self.pictures.batch([sample.pictures[0] for sample in samples])
        mask = torch.ones(len(samples), self.positions, dtype=torch.int64)
        return {"pixel_values": pixels, "attention_mask": mask}, [[NOWHERE] * self.positions] * len(samples)

    def decode(self, ids: Sequence[int]) -> str:
        """Nothing: there are no words."""
        return ""
