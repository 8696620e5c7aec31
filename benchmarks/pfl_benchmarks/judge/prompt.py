"""What a judge is asked, and the rating in what it says."""

from __future__ import annotations

import re
from pathlib import Path

from pfl_platform.errors import UserError

TEMPLATE = """[Instruction]
Judge how good the assistant's answer to the user's question below is, without taking sides. A good answer is in the \
language of the question, does what the question asks for, makes sense and is right in what it says, and is fluent \
and free of errors of grammar. First explain your judgement in a few sentences. Then rate the answer from 1 to 10, in \
exactly this form: "Rating: [[n]]", for example "Rating: [[5]]". An answer that a human wrote is given as a reference.

[Question]
{question}

[The Start of Assistant's Answer]
{answer}
[The End of Assistant's Answer]

[Reference]
{reference}
"""
"""In the structure of FedMosaic's Figure 8, in words of our own."""

FIELDS = ("question", "answer", "reference")
LOWEST, HIGHEST = 1.0, 10.0
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_FIELD = re.compile("{(" + "|".join(FIELDS) + ")}")


def read_template(path: Path | None) -> str:
    """The template in a file, or `TEMPLATE`."""
    if path is None:
        return TEMPLATE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The template {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if missing := next((name for name in FIELDS if f"{{{name}}}" not in text), None):
        raise UserError(f"The template {path} has no place {{{missing}}}.")
    return text


def prompt(template: str, question: str, answer: str, reference: str) -> str:
    """The template with its places filled; braces in what fills them stay as they are.

    >>> prompt("{question}|{answer}|{reference}", "a {answer}?", "b", "c")
    'a {answer}?|b|c'
    """
    given = {"question": question, "answer": answer, "reference": reference}
    return _FIELD.sub(lambda found: given[found.group(1)], template)


def rating_in(verdict: str) -> float | None:
    """The last rating in double brackets, from 1 to 10; None when there is none.

    >>> rating_in("Short and right. Rating: [[8]]"), rating_in("from [[1]] on: [[7.5]]")
    (8.0, 7.5)
    >>> rating_in("I cannot say."), rating_in("Rating: [[11]]")
    (None, None)
    """
    found = [float(text) for text in _RATING.findall(verdict)]
    return found[-1] if found and LOWEST <= found[-1] <= HIGHEST else None
