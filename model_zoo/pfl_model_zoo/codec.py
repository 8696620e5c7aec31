"""Samples to tensors and back, for every backbone of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pfl_model_zoo.chat import Piece, render
from pfl_model_zoo.lru import LRU
from pfl_model_zoo.pictures import PictureReader
from pfl_platform.backbones import IGNORE, Encoded, Span
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError

NOWHERE: Span = (-1, -1)
"""Span of a token that stands for no character: padding and the token that opens a row."""


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of tokens that are not text. `stop` holds every id that ends an answer; `end` is the one that is learned."""

    pad: int
    end: int
    stop: tuple[int, ...]
    bos: int | None = None
    image: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One sample, tokenised. ids, labels: int64 (positions,). spans: int32 (positions, 2)."""

    ids: Tensor
    labels: Tensor
    spans: NDArray[np.int32]
    text: str
    pictures: int


class PaddedSpans(Sequence[Sequence[Span]]):
    """Spans of a batch, padded on demand: most batches are trained on and nobody asks for them."""

    def __init__(self, rows: Sequence[NDArray[np.int32]], left: bool) -> None:
        self._rows = tuple(rows)
        self._left = left

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sequence[Span]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[Span]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[Span] | Sequence[Sequence[Span]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        row = self._rows[index]
        spans: list[Span] = [(int(start), int(end)) for start, end in row.tolist()]
        padding = [NOWHERE] * (max(map(len, self._rows)) - len(spans))
        return padding + spans if self._left else spans + padding


class ChatCodec:
    """See `pfl_platform.backbones.Codec`; `pfl_model_zoo.chat` has the text that all backbones share.

    tokenizer: cuts text into tokens; words that look like a special token are read as plain text.
    reader: how pictures are read; None for a text-only backbone.
    max_length: longest row in tokens. Longer rows lose text of the human turns from the left; pictures, answers and the
        words that frame a prompt are never cut, and a row that does not fit even so is a `UserError`.
    cache_rows: how many tokenised samples are kept.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        specials: Specials,
        reader: PictureReader | None,
        *,
        max_length: int,
        cache_rows: int = 8192,
    ) -> None:
        self.name = name
        # A copy, because the flags below belong to us and the caller's tokenizer may be in use elsewhere.
        self.tokenizer: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        self.specials = specials
        self.reader = reader
        self.max_length = max_length
        self._rows: LRU[tuple[str, tuple[Turn, ...], int, bool], _Row] = LRU(cache_rows)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.specials.stop

    @property
    def pad_id(self) -> int:
        return self.specials.pad

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first stop token, without surrounding white space."""
        kept: list[int] = []
        for token in ids:
            if token in self.specials.stop:
                break
            kept.append(int(token))
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """A batch, on the CPU. input_ids, attention_mask, labels: int64 (rows, positions); pixel_values: float32
        (pictures, 3, size, size), there when the batch shows pictures, row after row in the order of their marks."""
        rows = [self._row(sample, answers) for sample in samples]
        side = "right" if answers else "left"
        ids = pad_sequence([row.ids for row in rows], True, self.specials.pad, side)
        labels = pad_sequence([row.labels for row in rows], True, IGNORE, side)
        lengths = torch.tensor([len(row.ids) for row in rows])[:, None]
        width = ids.shape[1]
        places = torch.arange(width)
        mask = (places < lengths) if answers else (places >= width - lengths)
        inputs = {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
        pictures = [
            picture for sample, row in zip(samples, rows, strict=True) for picture in sample.pictures[: row.pictures]
        ]
        if pictures and self.reader is not None:
            inputs["pixel_values"] = self.reader.batch(pictures)
        spans = PaddedSpans([row.spans for row in rows], left=not answers)
        return Encoded(inputs, labels, spans, [row.text for row in rows])

    def _row(self, sample: Sample, answers: bool) -> _Row:
        key = (sample.id, sample.turns, len(sample.pictures), answers)
        row = self._rows.get(key)
        if row is None:
            row = self._tokenise(sample, answers)
            self._rows.put(key, row)
        return row

    def _tokenise(self, sample: Sample, answers: bool) -> _Row:
        if sample.pictures and self.reader is None:
            raise UserError(
                f"Sample '{sample.id}' has pictures but the backbone '{self.name}' reads text only; "
                "choose a vision-language backbone for this client."
            )
        rendering = render(sample, answers=answers)
        ids: list[int] = []
        labels: list[int] = []
        spans: list[Span] = []
        cuttable: list[int] = []
        if self.specials.bos is not None:
            ids, labels, spans = [self.specials.bos], [IGNORE], [NOWHERE]
        for piece in rendering.pieces:
            new, where = self._piece(piece)
            if piece.role == "prompt":
                cuttable.extend(range(len(ids), len(ids) + len(new)))
            ids += new
            spans += where
            labels += new if piece.role in ("answer", "end") else [IGNORE] * len(new)
        keep = self._kept(sample, len(ids), cuttable)
        return _Row(
            torch.tensor(ids)[keep],
            torch.tensor(labels)[keep],
            np.array(spans, dtype=np.int32)[keep],
            rendering.text,
            rendering.pictures,
        )

    def _piece(self, piece: Piece) -> tuple[list[int], list[Span]]:
        """Ids of one piece and the characters of the row that each covers."""
        if piece.role == "end":
            return [self.specials.end], [(piece.start, piece.end)]
        if piece.role == "mark" and self.reader is not None:
            if self.specials.image is None:
                raise ValueError(f"the codec of '{self.name}' reads pictures but has no image token")
            count = self.reader.tokens
            return [self.specials.image] * count, [(piece.start, piece.end)] * count
        encoding = self.tokenizer.encode(piece.text, add_special_tokens=False)
        return encoding.ids, [(piece.start + start, piece.start + end) for start, end in encoding.offsets]

    def _kept(self, sample: Sample, length: int, cuttable: Sequence[int]) -> slice | NDArray[np.int64]:
        """Which positions of an over-long row stay: all but the leftmost ones that may go."""
        excess = length - self.max_length
        if excess <= 0:
            return slice(None)
        if excess > len(cuttable):
            raise UserError(
                f"Sample '{sample.id}' needs {length - len(cuttable)} tokens for pictures and answers alone, but rows "
                f"of '{self.name}' have at most {self.max_length}; raise the backbone option max_length."
            )
        return np.delete(np.arange(length), cuttable[:excess])
