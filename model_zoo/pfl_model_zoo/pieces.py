"""The text that each token of a tokenizer stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level tokenizers write bytes: printable ones of Latin-1 as they are, the other 68 as
    the characters from U+0100 on, in order.

    >>> alphabet = byte_alphabet()
    >>> alphabet["a"], alphabet["\\u0120"], len(set(alphabet.values()))    # U+0120 is the blank
    (97, 32, 256)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(rest)}


def pieces_of(tokenizer: Tokenizer) -> list[bytes | None]:
    """By id: the UTF-8 bytes of a token's text, None for special tokens and for ids that are not given.

    Reads byte-level tokenizers and those that write a blank as U+2581 and rare bytes as `<0x0A>`; all others' tokens
    are taken as they are written.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    kinds = set(_kinds(json.loads(tokenizer.to_str()).get("decoder")))
    pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        if number in added:
            pieces[number] = None if added[number].special else token.encode()
        elif "ByteLevel" in kinds:
            alphabet = byte_alphabet()
            known = all(letter in alphabet for letter in token)
            pieces[number] = bytes(alphabet[letter] for letter in token) if known else token.encode()
        elif byte := _BYTE.fullmatch(token):
            pieces[number] = bytes([int(byte.group(1), 16)])
        else:
            pieces[number] = token.replace("\u2581", " ").encode()
    return pieces


def _kinds(decoder: Any) -> Iterator[str]:
    """The types of a decoder and of what it is made of."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)
