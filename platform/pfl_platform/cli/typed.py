"""The command as it was typed: processes that it starts carry out the same."""

from __future__ import annotations

from collections.abc import Sequence

_words: list[str] = []


def take(typed: Sequence[str]) -> None:
    _words[:] = typed


def words() -> list[str]:
    return _words
