"""The options of a multi-choice question, as its prompt shows them."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Sequence

_LIST = re.compile(r"choice\s+lists?\s*:\s*\[", re.IGNORECASE)
_LABEL = re.compile(r"\(?([A-Z])\s*[.:)]\s*(.*)", re.DOTALL)
_INLINE = re.compile(r"(?<!\w)A\s*[.:)]\s*[^|\n]+(?:\|\s*[B-Z]\s*[.:)]\s*[^|\n]+)+")


def parse_choices(question: str) -> tuple[str, ...]:
    """The options in the order shown, without their letters; empty when the question shows none.

    >>> parse_choices("Same kind? Choice list:[True, False]. Your answer is:")
    ('True', 'False')
    >>> parse_choices("Which? Choice List:[A. deer | B. a white, tall horse]")
    ('deer', 'a white, tall horse')
    >>> parse_choices("Which? Choice lists: ['red, or not', 'blue']")
    ('red, or not', 'blue')
    >>> parse_choices("What is it? A: a cat| B: a dog| C: a cow")
    ('a cat', 'a dog', 'a cow')
    >>> parse_choices("Which one?\\nA. first\\nB. second\\nAnswer:")
    ('first', 'second')
    >>> parse_choices("Which picture? Choice list:[Image 1, Image 2, Image 3]")
    ('Image 1', 'Image 2', 'Image 3')
    """
    if (listed := _last(_LIST, question)) is not None:
        return _options(_bracketed(question[listed.end() :]))
    if (inline := _last(_INLINE, question)) is not None:
        return _unlabelled([part.strip() for part in inline.group().split("|")]) or ()
    return _lettered_lines(question)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    return found


def _bracketed(text: str) -> str:
    """`text` up to the bracket that closes the one before it."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return text[:index]
    return text


def _options(inside: str) -> tuple[str, ...]:
    if inside.lstrip()[:1] in {"'", '"'}:
        try:
            return tuple(str(option).strip() for option in ast.literal_eval(f"[{inside}]"))
        except (SyntaxError, ValueError):
            pass  # not quoted as Python quotes; the separators below decide
    separator = "|" if "|" in inside else ", " if ", " in inside else ","
    parts = [part.strip() for part in inside.split(separator)]
    parts = [part for part in parts if part]
    return _unlabelled(parts) or tuple(parts)


def _unlabelled(parts: Sequence[str]) -> tuple[str, ...] | None:
    """The parts without the labels A, B, C, ...; None unless all are labelled so."""
    labelled = [_LABEL.fullmatch(part) for part in parts]
    texts = []
    for letter, match in zip(string.ascii_uppercase, labelled, strict=False):
        if match is None or match.group(1) != letter:
            return None
        texts.append(match.group(2).strip())
    return tuple(texts) if len(texts) == len(parts) else None


def _lettered_lines(question: str) -> tuple[str, ...]:
    """Options on consecutive lines `A. x`, `B. y`, ...; the last such block, if there is one of two or more."""
    blocks: list[list[str]] = []
    for line in question.splitlines():
        match = _LABEL.fullmatch(line.strip())
        if match is None:
            blocks.append([])
        elif match.group(1) == "A":
            blocks.append([match.group(2).strip()])
        elif blocks and blocks[-1] and match.group(1) == string.ascii_uppercase[len(blocks[-1]) % 26]:
            blocks[-1].append(match.group(2).strip())
    return next((tuple(block) for block in reversed(blocks) if len(block) > 1), ())
