"""The first question of a sample as tokens, for backbones whose encoder reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from pfl_model_zoo.chat import render
from pfl_model_zoo.codec import NOWHERE, ROW_BYTES, PaddedSpans, cut, own_copy
from pfl_platform.backbones import Span
from pfl_platform.data import Sample
from pfl_platform.errors import UserError
from pfl_platform.store.scratch import Scratch

Tokens = NDArray[np.int32]
"""(positions, 3): the id, and the characters of the rendering that it covers."""


class QuestionReader:
    """Tokenises what the human says first, without the words that frame a chat.

    opening, closing: ids that stand around the question, where the backbone wants them. Questions that are longer than
    `max_length` lose their left. cache_rows: about how many tokenised questions are kept, on disk.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        *,
        pad: int,
        opening: int | None,
        closing: int | None,
        max_length: int,
        cache_rows: int = 8192,
    ) -> None:
        self.name = name
        self.tokenizer = own_copy(tokenizer)
        self.pad = pad
        self.max_length = max_length
        self._opening = [] if opening is None else [(opening, *NOWHERE)]
        self._closing = [] if closing is None else [(closing, *NOWHERE)]
        self._rows = Scratch(2 * cache_rows, cache_rows * ROW_BYTES)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text.strip()

    def read(self, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], PaddedSpans]:
        """`input_ids` and `attention_mask`, int64 (rows, positions), padded on the right, and the tokens' spans. A
        sample with pictures is a `UserError`."""
        rows = [self._row(sample) for sample in samples]
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row[:, 0]
            mask[number, : len(row)] = 1
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return inputs, PaddedSpans([row[:, 1:] for row in rows], left=False)

    def _row(self, sample: Sample) -> Tokens:
        key = repr((sample.id, sample.turns[:1], len(sample.pictures))).encode()
        found = self._rows.get(key)
        if found is not None:
            return np.frombuffer(found, np.int32).reshape(-1, 3)
        row = self._tokenise(sample)
        self._rows.put(key, row.tobytes())
        return row

    def _tokenise(self, sample: Sample) -> Tokens:
        if sample.pictures:
            raise UserError(
                f"Sample '{sample.id}' has pictures but the backbone '{self.name}' reads text only; "
                "choose a vision-language backbone."
            )
        tokens: list[tuple[int, int, int]] = []
        for piece in render(sample, answers=False).pieces:
            if piece.role != "frame":
                ids, spans = cut(self.tokenizer, piece)
                tokens += [(token, *span) for token, span in zip(ids, spans, strict=True)]
        excess = max(0, len(tokens) + len(self._opening) + len(self._closing) - self.max_length)
        kept = [*self._opening, *tokens[excess:], *self._closing]
        return np.array(kept, dtype=np.int32).reshape(-1, 3)


def spans_of(rows: Sequence[Sequence[Span]]) -> PaddedSpans:
    """Spans of a batch that is padded on the right."""
    return PaddedSpans([np.array(row, dtype=np.int32).reshape(-1, 2) for row in rows], left=False)
