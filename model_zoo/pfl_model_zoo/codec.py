"""Samples to tensors and back, for every backbone of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pfl_model_zoo.chat import Piece, render
from pfl_model_zoo.pictures import PictureReader
from pfl_model_zoo.pieces import pieces_of
from pfl_platform.backbones import IGNORE, Encoded, Span
from pfl_platform.data import Sample
from pfl_platform.errors import UserError
from pfl_platform.store.scratch import Scratch

NOWHERE: Span = (-1, -1)
"""Span of a token that stands for no character: padding and the token that opens a row."""

ROW_BYTES = 4096
"""Disk for a tokenised sample: enough for 250 tokens and their text."""


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
    """One sample, tokenised. ids: int32 (positions,). learned: bool (positions,), where the label is the id itself.
    spans: int32 (positions, 2). pictures: how many of the sample's it shows."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    spans: NDArray[np.int32]
    text: str
    pictures: int

    def packed(self) -> bytes:
        """All of it as bytes: two counts, ids, spans, learned, text."""
        counts = np.array([len(self.ids), self.pictures], dtype=np.int32)
        text = self.text.encode()
        return b"".join((counts.tobytes(), self.ids.tobytes(), self.spans.tobytes(), self.learned.tobytes(), text))

    @classmethod
    def unpacked(cls, data: memoryview) -> _Row:
        length, pictures = np.frombuffer(data, np.int32, 2).tolist()
        spans, learned, text = 8 + 4 * length, 8 + 12 * length, 8 + 13 * length
        return cls(
            np.frombuffer(data, np.int32, length, 8),
            np.frombuffer(data, np.bool_, length, learned),
            np.frombuffer(data, np.int32, 2 * length, spans).reshape(length, 2),
            str(data[text:], "utf-8"),
            pictures,
        )


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


def own_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither pads nor truncates and reads words that look like a special token as plain text. The
    caller's may be in use elsewhere."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    copy.encode_special_tokens = True
    return copy


def cut(tokenizer: Tokenizer, piece: Piece) -> tuple[list[int], list[Span]]:
    """Ids of a piece of text and the characters of the row that each covers."""
    encoding = tokenizer.encode(piece.text, add_special_tokens=False)
    return encoding.ids, [(piece.start + start, piece.start + end) for start, end in encoding.offsets]


class ChatCodec:
    """See `pfl_platform.backbones.Codec`; `pfl_model_zoo.chat` has the text that all backbones share.

    tokenizer: cuts text into tokens; words that look like a special token are read as plain text.
    reader: how pictures are read; None for a text-only backbone.
    max_length: longest row in tokens. Longer rows lose text of the human turns from the left; pictures, answers and the
        words that frame a prompt are never cut, and a row that does not fit even so is a `UserError`.
    cache_rows: about how many tokenised samples are kept, on disk.
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
        self.tokenizer = own_copy(tokenizer)
        self.specials = specials
        self.reader = reader
        self.max_length = max_length
        self._rows = Scratch(2 * cache_rows, cache_rows * ROW_BYTES)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.specials.stop

    @property
    def pad_id(self) -> int:
        return self.specials.pad

    @property
    def end_id(self) -> int:
        return self.specials.end

    @cached_property
    def pieces(self) -> tuple[bytes | None, ...]:
        """See `pfl_platform.backbones.PieceCodec`."""
        specials = self.specials
        silent = {specials.pad, specials.end, *specials.stop, specials.bos, specials.image}
        return tuple(None if token in silent else piece for token, piece in enumerate(pieces_of(self.tokenizer)))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first stop token, without surrounding white space."""
        kept: list[int] = []
        for token in ids:
            if token in self.specials.stop:
                break
            kept.append(int(token))
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def encode(self, samples: Sequence[Sample], *, answers: bool = True, pixels: bool = True) -> Encoded:
        """A batch, on the CPU. input_ids, attention_mask, labels: int64 (rows, positions); pixel_values: float32
        (pictures, 3, size, size), there when the batch shows pictures, row after row in the order of their marks;
        without `pixels` they are left unread."""
        rows = [self._row(sample, answers) for sample in samples]
        width = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), width), self.specials.pad, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            length = len(row.ids)
            place = slice(0, length) if answers else slice(width - length, width)
            ids[number, place] = row.ids
            labels[number, place] = np.where(row.learned, row.ids, IGNORE)
            mask[number, place] = 1
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        pictures = [
            picture for sample, row in zip(samples, rows, strict=True) for picture in sample.pictures[: row.pictures]
        ]
        if pictures and pixels and self.reader is not None:
            inputs["pixel_values"] = self.reader.batch(pictures)
        spans = PaddedSpans([row.spans for row in rows], left=not answers)
        unread = () if pixels else pictures
        return Encoded(inputs, torch.from_numpy(labels), spans, [row.text for row in rows], pictures=unread)

    def _row(self, sample: Sample, answers: bool) -> _Row:
        turns = [(turn.human, turn.answer) for turn in sample.turns]
        key = repr((sample.id, turns, len(sample.pictures), answers)).encode()
        found = self._rows.get(key)
        if found is not None:
            return _Row.unpacked(found)
        row = self._tokenise(sample, answers)
        self._rows.put(key, row.packed())
        return row

    def _tokenise(self, sample: Sample, answers: bool) -> _Row:
        if sample.pictures and self.reader is None:
            raise UserError(
                f"Sample '{sample.id}' has pictures but the backbone '{self.name}' reads text only; "
                "choose a vision-language backbone."
            )
        rendering = render(sample, answers=answers)
        ids: list[int] = []
        learned: list[bool] = []
        spans: list[Span] = []
        cuttable: list[int] = []
        if self.specials.bos is not None:
            ids, learned, spans = [self.specials.bos], [False], [NOWHERE]
        for piece in rendering.pieces:
            new, where = self._piece(piece)
            if piece.role == "prompt":
                cuttable.extend(range(len(ids), len(ids) + len(new)))
            ids += new
            spans += where
            learned += [piece.role in ("answer", "end")] * len(new)
        keep = self._kept(sample, len(ids), cuttable)
        return _Row(
            np.array(ids, dtype=np.int32)[keep],
            np.array(learned, dtype=np.bool_)[keep],
            np.array(spans, dtype=np.int32).reshape(-1, 2)[keep],
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
        return cut(self.tokenizer, piece)

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
