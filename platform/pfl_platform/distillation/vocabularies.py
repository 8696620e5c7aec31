"""Matching the tokens of two tokenizers by the text that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from pfl_platform.backbones import Backbone, PieceCodec
from pfl_platform.errors import UserError

NOTHING = -1


@dataclass(frozen=True)
class Vocabulary:
    """pieces: see `PieceCodec`. end: id of the token that ends an answer. size: logits per position, at least as many
    as there are pieces."""

    pieces: tuple[bytes | None, ...] = field(repr=False)
    end: int
    size: int

    @staticmethod
    def of(backbone: Backbone) -> Vocabulary:
        """Raises `UserError` for a backbone whose codec cannot say what its tokens stand for."""
        codec = backbone.codec
        if not isinstance(codec, PieceCodec):
            raise UserError(
                f"The codec of '{backbone.name}' does not say what text its tokens stand for, so its predictions "
                "cannot be compared with those of another tokenizer; give all clients the same backbone."
            )
        return Vocabulary(codec.pieces, codec.end_id, width(backbone))


def width(backbone: Backbone) -> int:
    """Logits per position."""
    head = backbone.module(backbone.head)
    weight = head.weight
    assert isinstance(head, nn.Module)
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def between(source: Backbone, target: Backbone) -> Tensor | None:
    """`vocabulary_map` of two backbones; None when their tokens are the same, so that nothing has to be mapped."""
    if source.name == target.name:
        return None
    first, second = Vocabulary.of(source), Vocabulary.of(target)
    return None if first == second else vocabulary_map(first, second)


@lru_cache(maxsize=64)
def vocabulary_map(source: Vocabulary, target: Vocabulary) -> Tensor:
    """For each token of the source, the target's token that stands for the same text, else the longest one with which
    that text begins, else -1. int64 (source.size,).

    So a teacher's ` reddish` speaks for a student's ` red`, which is what the student has to say first. Ends are
    matched with each other. Of several tokens with equal text the first counts.

    >>> teacher = Vocabulary((None, b"a", b"ab", b"abc", b"x"), end=0, size=6)
    >>> student = Vocabulary((b"a", b"abc", None, b"ab"), end=2, size=4)
    >>> vocabulary_map(teacher, student).tolist()
    [2, 0, 3, 1, -1, -1]
    """
    known: dict[bytes, int] = {}
    for token, piece in enumerate(target.pieces):
        if piece:
            known.setdefault(piece, token)
    longest = max(map(len, known), default=0)
    result = torch.full((source.size,), NOTHING, dtype=torch.int64)
    for token, piece in enumerate(source.pieces):
        for length in range(min(len(piece or b""), longest), 0, -1):
            assert piece is not None
            found = known.get(piece[:length])
            if found is not None:
                result[token] = found
                break
    result[source.end] = target.end
    return result
