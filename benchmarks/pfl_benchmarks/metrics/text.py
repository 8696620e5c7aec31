"""Plain forms of a text, shared by the metrics."""

from __future__ import annotations

import string
import unicodedata

_EDGES = string.punctuation + "“”‘’«»…–—。，、！？；："  # noqa: RUF001 (typographic marks are meant)


def plain(text: str) -> str:
    """Case, Unicode form and white space removed as differences; punctuation stays.

    >>> plain("  Dark\\nGREEN. ")
    'dark green.'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """Words of the plain form, without punctuation at their edges; a word of punctuation only stays as it is.

    >>> words("It's 3.5, (roughly)!")
    ["it's", '3.5', 'roughly']
    >>> words("+ 2")
    ['+', '2']
    """
    return [word.strip(_EDGES) or word for word in plain(text).split()]


def bare(text: str) -> str:
    """The words, joined by single spaces.

    >>> bare('"The red one."')
    'the red one'
    """
    return " ".join(words(text))
