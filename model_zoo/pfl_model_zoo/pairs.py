"""Samples as pairs of a question and an answer, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from pfl_model_zoo.chat import render
from pfl_model_zoo.codec import NOWHERE, cut
from pfl_model_zoo.questions import QuestionReader, spans_of
from pfl_platform.backbones import IGNORE, Encoded, Span
from pfl_platform.data import Sample
from pfl_platform.errors import UserError


class PairCodec:
    """See `pfl_platform.backbones.Codec`. The encoder reads the first question, the decoder writes its answer.

    Of a conversation of several turns only the first is learned, as only the first is evaluated. start: id with which
    the decoder begins. stop: ids that end an answer; `end` is the one that is learned.
    """

    def __init__(self, reader: QuestionReader, *, start: int, end: int, stop: tuple[int, ...]) -> None:
        self.reader = reader
        self.start = start
        self.end = end
        self._stop = stop

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop

    @property
    def pad_id(self) -> int:
        return self.reader.pad

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first stop token, without surrounding white space."""
        kept: list[int] = []
        for token in ids:
            if token in self._stop:
                break
            kept.append(int(token))
        text: str = self.reader.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """A batch, on the CPU, padded on the right. input_ids, attention_mask: int64 (rows, positions);
        decoder_input_ids, decoder_attention_mask: int64 (rows, 1 + answer positions), the start token and the answer
        with its end. labels: the same, without the start. Without answers: the start token alone."""
        inputs, _ = self.reader.read(samples)
        pairs = [self._answer(sample) if answers else ([], []) for sample in samples]
        written = [torch.tensor([self.start, *ids]) for ids, _ in pairs]
        labels = [torch.tensor([IGNORE, *ids]) for ids, _ in pairs]
        inputs["decoder_input_ids"] = pad_sequence(written, True, self.reader.pad)
        inputs["decoder_attention_mask"] = pad_sequence([torch.ones_like(row) for row in written], True, 0)
        spans = spans_of([[NOWHERE, *where] for _, where in pairs])
        texts = [render(sample, answers=answers).text for sample in samples]
        return Encoded(inputs, pad_sequence(labels, True, IGNORE), spans, texts)

    def _answer(self, sample: Sample) -> tuple[list[int], list[Span]]:
        """Ids and spans of the first answer and its end."""
        ids: list[int] = []
        spans: list[Span] = []
        for piece in render(sample).pieces:
            if piece.role == "answer":
                ids, spans = cut(self.reader.tokenizer, piece)
            elif piece.role == "end":
                ids, spans = [*ids, self.end], [*spans, (piece.start, piece.end)]
                break
        if len(ids) >= self.reader.max_length:
            raise UserError(
                f"Sample '{sample.id}' has an answer of {len(ids)} tokens, but rows of '{self.reader.name}' have at "
                f"most {self.reader.max_length}; raise the backbone option max_length."
            )
        return ids, spans
